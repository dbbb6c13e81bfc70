"""
The command line: `nemo-llm-stage`, also `python -m nemo_llm_stage`. One file per command.

Words become a `JobConfig`; errors become one message and an exit code: 0 all rows accounted for, 1 the run broke, 2 the
settings or the input are wrong, 3 more rows failed than are allowed, 4 a limit or an order ended the
run. Heavy modules are imported inside the command that needs them.
"""

from __future__ import annotations

import io
import platform
import sys
from importlib.metadata import version

import click

from nemo_llm_stage import __version__
from nemo_llm_stage.cli import (
    completion,
    corpus,
    dashboard,
    doctor,
    explain,
    init,
    preview,
    push,
    report,
    retry_failed,
    run,
    schema,
    serve,
    serve_local,
    simulate_server,
    status,
    steer,
    submit,
    verify,
)
from nemo_llm_stage.cli.command import CONTEXT, Command, Commands
from nemo_llm_stage.cli.pipeline import pipeline

__all__ = ["Command", "main", "pipeline"]


def _show_version(context: click.Context, _: click.Parameter, is_given: bool) -> None:
    """Print the versions that a bug report needs."""
    if not is_given or context.resilient_parsing:
        return
    click.echo(f"nemo-llm-stage {__version__}")
    click.echo(f"Python {platform.python_version()}, {platform.platform()}")
    for package in ("ray", "pyarrow", "pydantic"):
        click.echo(f"{package} {version(package)}")
    context.exit()


@click.group(cls=Commands, context_settings=CONTEXT)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions that a bug report needs.",
)
def main() -> None:
    """
    Add LLM-generated columns to a dataset of any size.

    Start with `nemo-llm-stage init`: it writes a job file that runs as it is.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows fewer characters


for command in (
    *(init.command, preview.command, run.command),
    *(status.command, status.tail, status.failures, status.jobs),
    *(steer.pause, steer.resume, steer.drain, steer.set_limits),
    *(retry_failed.command, verify.command, report.command, dashboard.command, push.command),
    *(submit.command, doctor.command, explain.command, schema.command),
    *(corpus.command, serve.command, serve_local.command, simulate_server.command, completion.command),
):
    main.add_command(command)
