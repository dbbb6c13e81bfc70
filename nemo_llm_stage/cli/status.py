"""`nemo-llm-stage status`, `jobs`, `tail` and `failures`: look at jobs from any shell."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from nemo_llm_stage.cli.command import Command
from nemo_llm_stage.errors import LLMStageError
from nemo_llm_stage.text import printable

WATCH_S = 2.0


class WatchCommand(Command):
    """Looks at a job that somebody else runs."""

    on_interrupt = "no longer shown; a run that is in progress goes on."


@click.command("status", cls=WatchCommand)
@click.argument("output")
@click.option("--watch", is_flag=True, help="Show it again every 2 seconds until the run has ended.")
@click.option("--json", "is_json", is_flag=True, help="Write JSON, one line each time.")
def command(output: str, watch: bool, is_json: bool) -> None:
    """
    Show how the job in OUTPUT stands: running, paused, finished, stopped, failed or killed.

    It is read from the output folder, so it works from any machine and for any store.
    """
    from nemo_llm_stage.report.status_text import status_lines

    for job in _states(output, watch=watch):
        if is_json:
            click.echo(json.dumps(job.to_dict()))
            continue
        if watch and sys.stdout.isatty():
            click.clear()
        click.echo(printable("\n".join(status_lines(job))))


@click.command("jobs", cls=Command)
@click.argument("folder")
@click.option("--json", "is_json", is_flag=True, help="Write JSON, one line for each job.")
def jobs(folder: str, is_json: bool) -> None:
    """List the jobs in FOLDER and below it, and how they stand."""
    from nemo_llm_stage.job.state import find_jobs, read_state
    from nemo_llm_stage.report.status_text import job_line

    lines = []
    urls = find_jobs(folder)
    for url in urls:
        try:
            job = read_state(url)
        except LLMStageError as error:  # the others are shown all the same
            click.echo(printable(str(error)), err=True)
            continue
        if is_json:
            click.echo(json.dumps(job.to_dict()))
        lines.append(job_line(job))
    if is_json:
        return
    if not urls:
        click.echo(f"there is no job in {printable(folder)}.")
    widths = [max(len(line[place]) for line in lines) for place in range(5)] if lines else []
    for line in lines:
        click.echo(printable("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()))


@click.command("tail", cls=WatchCommand)
@click.argument("output")
@click.option("--follow/--no-follow", default=True, help="Wait for more rows until the run has ended.")
@click.option("--json", "is_json", is_flag=True, help="Write JSON, one line for each row.")
def tail(output: str, follow: bool, is_json: bool) -> None:
    """
    Show rows of the job in OUTPUT as they are finished: a few each second, their answers cut after 200 characters.
    """  # noqa: D200 - one line is too long
    seen: list[Any] = []
    for job in _states(output, watch=follow):
        rows = [] if job.status is None else job.status.rows
        for row in rows:
            if row in seen:
                continue
            click.echo(json.dumps(row) if is_json else printable(_row_line(row)))
        seen = rows


@click.command("failures", cls=Command)
@click.argument("output")
def failures(output: str) -> None:
    """Show the failed rows of the job in OUTPUT by kind and by the server's words, and the command to retry them."""
    from nemo_llm_stage.run import failures_of

    groups = failures_of(output)
    if not groups:
        click.echo("no row has failed.")
        return
    for group in groups:
        click.echo(printable(f"{group.num:,} x {group.kind}: {group.words}"))
        for example in group.examples:
            click.echo(printable(f"    {example}"))
    kinds = sorted({group.kind for group in groups})
    click.echo(f"\nCause and next step:\n  nemo-llm-stage explain {groups[0].kind}")
    click.echo("Send them again once the job has finished:")
    retry = f"  nemo-llm-stage retry-failed {printable(shlex.quote(output))}"
    click.echo(retry)
    if len(kinds) > 1:
        click.echo(f"{retry} --kind {kinds[0]}")


def _states(output: str, *, watch: bool) -> Iterator[Any]:
    """Yield the job's state, if `watch` until the run has ended."""
    from nemo_llm_stage.job.state import read_state

    while True:
        job = read_state(output)
        yield job
        if not (watch and job.is_live):
            return
        time.sleep(WATCH_S)


def _row_line(row: dict[str, Any]) -> str:
    from nemo_llm_stage.worker.samples import words_of

    return f"{row['at'][11:19]}  {'  '.join(words_of(row))}"
