"""`nemo-llm-stage pause`, `resume`, `drain` and `set`: orders to a run, from any shell that may write its folder."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from nemo_llm_stage.cli.command import EXIT_RUN, Command
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.text import printable

LOCAL_WAIT_S = 15.0
STORE_WAIT_S = 60.0
"""Seconds that the command waits for an answer."""


@click.command("pause", cls=Command)
@click.argument("output")
def pause(output: str) -> None:
    """Pause the job in OUTPUT: requests in flight end, no more are sent until `resume`."""
    _give(output, "pause")


@click.command("resume", cls=Command)
@click.argument("output")
def resume(output: str) -> None:
    """Let a paused run go on; a job that has ended is resumed by running it again."""
    _give(output, "resume")


@click.command("drain", cls=Command)
@click.argument("output")
def drain(output: str) -> None:
    """End the run in OUTPUT in order: send no more requests, keep the answers of those in flight, and stop."""
    _give(output, "drain")


@click.command("set", cls=Command)
@click.argument("output")
@click.argument("assignments", nargs=-1, required=True, metavar="NAME=VALUE...")
def set_limits(output: str, assignments: tuple[str, ...]) -> None:
    """
    Change limits of the run in OUTPUT while it runs.

    These can be changed: max_concurrent_requests (of each server; a number), max_failed_rows, max_cost, max_requests,
    max_output_tokens, max_duration, requests_per_minute, tokens_per_minute. `null` takes a limit away. Where no run
    is in progress, the next one follows the order. The job file stays as it is.
    """
    from nemo_llm_stage.config.job_settings import JobSettings
    from nemo_llm_stage.config.load import override
    from nemo_llm_stage.worker.control.control import check_can_be_set

    values = override({}, assignments)
    check_can_be_set(values, JobSettings(price_input=0.0))  # the run knows whether there are prices
    _give(output, "set", values)


def _give(output: str, kind: str, settings: dict[str, Any] | None = None) -> None:
    """Give an order, and wait for the answer and print it; the exit code is 1 if it was not followed."""
    from nemo_llm_stage.dataset.folder import OutputFolder
    from nemo_llm_stage.dataset.state.orders import give_order, read_answer
    from nemo_llm_stage.dataset.writing import writing_to
    from nemo_llm_stage.job.state import read_state

    job = read_state(output)
    if not job.is_live and kind != "set":
        raise ConfigError(f"no run is in progress in {output!r}: it is {job.state}. Resume it with: {job.command}")
    state = OutputFolder(output).state
    with writing_to(output):
        order_id = give_order(state, kind, settings)
    if not job.is_live:
        click.echo(f"no run is in progress in {output}; the next run follows this order.")
        return
    wait_until = time.monotonic() + (LOCAL_WAIT_S if state.is_local else STORE_WAIT_S)
    while (answer := read_answer(state, order_id)) is None:
        if time.monotonic() > wait_until:
            click.echo("the order is written, but the run has not answered yet; see: nemo-llm-stage status", err=True)
            sys.exit(EXIT_RUN)
        time.sleep(0.2 if state.is_local else 1.0)
    click.echo(printable(answer.text), err=not answer.is_done)
    sys.exit(0 if answer.is_done else EXIT_RUN)
