"""`nemo-llm-stage preview`: a few rows of a job, before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nemo_llm_stage.cli.command import options
from nemo_llm_stage.cli.options import JobCommand, read_settings


@click.command("preview", cls=JobCommand)
@click.argument("job_file", required=False, type=click.Path(path_type=Path))
@options(
    "Preview",
    click.option("-n", "--rows", type=click.IntRange(1), default=5, show_default=True, help="How many rows."),
    click.option("--dry-run", is_flag=True, help="Only show the prompts; send no requests."),
    click.option("--full", is_flag=True, help="Show long texts to their end."),
)
def command(job_file: Path | None, rows: int, dry_run: bool, full: bool, **flags: Any) -> None:
    """
    Preview a job: the exact prompts of a few rows spread over the dataset, and their answers.

    Takes the options of `run`, writes nothing, and estimates tokens, time and cost of all rows from these few.
    """
    from nemo_llm_stage.config.load import make_config
    from nemo_llm_stage.job.preview import preview_job
    from nemo_llm_stage.report.console import PlainConsole
    from nemo_llm_stage.report.preview_panels import preview_panels
    from nemo_llm_stage.report.progress.progress import Progress
    from nemo_llm_stage.serving import servers_of

    config = make_config(read_settings(job_file, flags), str(job_file or "the command line"))
    is_shown = config.servers is not None and not dry_run
    with Progress(is_shown=is_shown, title="preview") as shown, servers_of(config, shown) as servers:
        preview = preview_job(config, rows, is_dry=dry_run, before_check=servers.start)
    PlainConsole().print(preview_panels(preview, is_full=full))
