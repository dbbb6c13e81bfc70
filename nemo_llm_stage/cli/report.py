"""`nemo-llm-stage report`: a page about a job, or about two; a dataset card."""

from __future__ import annotations

import click

from nemo_llm_stage.cli.command import Command
from nemo_llm_stage.errors import ConfigError


@click.command("report", cls=Command)
@click.argument("outputs", nargs=-1, required=True, metavar="OUTPUT...")
@click.option("--open", "is_opened", is_flag=True, help="Open the page in the browser.")
@click.option("--compare", "is_compared", is_flag=True, help="Set two jobs over the same input side by side.")
@click.option("--card", "is_card", is_flag=True, help="Write a dataset card, README.md, into OUTPUT.")
@click.option("--license", "license_id", default="unknown", help="License of the data, for the card, e.g. cc-by-4.0.")
def command(outputs: tuple[str, ...], is_opened: bool, is_compared: bool, is_card: bool, license_id: str) -> None:
    """
    Write a page about the job in OUTPUT: how it ended, what ran, failures, waste, distributions and a sample of rows.

    The job may be finished, stopped or still running. The page is one file that needs no network. With --compare and
    two outputs it is about both: agreement, length, cost, and the rows that differ.
    """
    if len(outputs) != 1 + is_compared:
        raise ConfigError("report takes one output folder; report --compare takes two.")
    if is_card:
        from nemo_llm_stage.report.card import write_card

        click.echo(write_card(outputs[0], license_id))
        return
    path = _compare(*outputs) if is_compared else _report(outputs[0])
    click.echo(path)
    if is_opened:
        click.launch(path)


def _report(output: str) -> str:
    from nemo_llm_stage.report.page.render import write_report

    return write_report(output)


def _compare(left: str, right: str) -> str:
    from nemo_llm_stage.report.compare.page import comparison_table, write_comparison
    from nemo_llm_stage.report.compare.sides import read_sides
    from nemo_llm_stage.report.console import PlainConsole

    sides = read_sides(left, right)
    PlainConsole().print(comparison_table(sides))
    return write_comparison(sides)
