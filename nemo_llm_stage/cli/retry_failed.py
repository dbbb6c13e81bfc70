"""`nemo-llm-stage retry-failed`: the failed rows of a job, once more."""

from __future__ import annotations

import click

from nemo_llm_stage.cli.command import Command
from nemo_llm_stage.cli.run import show_summary


@click.command("retry-failed", cls=Command)
@click.argument("output")
@click.option("--kind", multiple=True, help="Only rows that failed with this kind, e.g. timeout. May be repeated.")
@click.option("--progress/--no-progress", default=True, help="Show progress on stderr.")
def command(output: str, kind: tuple[str, ...], progress: bool) -> None:
    """Retry the failed rows of the job in OUTPUT and replace them with the new results."""
    from nemo_llm_stage.run import retry_output

    result = retry_output(output, kind, progress=progress)
    if result.num_retried:
        show_summary(result)
        return
    others = ", ".join(f"{number:,} x {name}" for name, number in result.counters.errors.items())
    of_kind = f" with the kind {' or '.join(kind)}; there are {others or 'none at all'}" if kind else ""
    click.echo(f"nothing to retry: {output} has no failed rows{of_kind}.")
