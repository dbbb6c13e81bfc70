"""`nemo-llm-stage report`: a page about a job."""

from __future__ import annotations

import click

from nemo_llm_stage.cli.command import Command


@click.command("report", cls=Command)
@click.argument("output")
@click.option("--open", "is_opened", is_flag=True, help="Open the page in the browser.")
def command(output: str, is_opened: bool) -> None:
    """
    Write a page about the job in OUTPUT: how it ended, what ran, failures, waste, distributions and a sample of rows.

    The job may be finished, stopped or still running. The page is one file that needs no network.
    """
    from nemo_llm_stage.report.page.render import write_report

    path = write_report(output)
    click.echo(path)
    if is_opened:
        click.launch(path)
