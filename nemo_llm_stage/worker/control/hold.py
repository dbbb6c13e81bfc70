"""
One run at a time in an output folder: the second one is refused, takes over what a dead one left, or is told to.

Knows the state folder; knows nothing of rows.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nemo_llm_stage.client.throttle import Spending
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.layout import Layout
from nemo_llm_stage.dataset.state.holder import (
    Holder,
    is_running,
    last_seen_at,
    new_holder,
    publish_holder,
    read_holder,
    replace_holder,
)
from nemo_llm_stage.dataset.state.json_file import age_s
from nemo_llm_stage.dataset.state.orders import give_order, read_answer
from nemo_llm_stage.dataset.state.status import read_status
from nemo_llm_stage.dataset.state.timeline import Timeline
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.dataset.writing import writing_to
from nemo_llm_stage.errors import LLMStageError, OutputBusyError
from nemo_llm_stage.job.prepare import Job
from nemo_llm_stage.worker.control.control import RunControl
from nemo_llm_stage.worker.control.keeper import RunKeeper
from nemo_llm_stage.worker.control.standing import JobFacts

LOCAL_ANSWER_S, STORE_ANSWER_S = 10.0, 30.0
"""Seconds that a run has to answer the order to stop, before its place is taken anyway. One that lives takes a few."""

LOCAL_STOP_S, STORE_STOP_S = 10.0, 20.0
"""Seconds from its answer to its end: it keeps its answers and closes its files meanwhile."""

_SETTLE_S = 0.3
"""Seconds after which a run that took a dead one's place looks whether another did so at the same time."""


def make_room(url: str, *, takeover: bool, layout: Layout | None = None) -> Holder | None:
    """
    Make sure that no other run goes on in the output folder `url`, before anything is read or asked.

    Args:
        url: The output folder; it need not exist.
        takeover: Whether to stop a run that goes on, in place of refusing.
        layout: Where the state is, if that is known.

    Returns:
        The run that was found dead there, if any; that may have taken two heartbeats.

    Raises:
        OutputBusyError: A run goes on there.
    """
    state = OutputFolder(url, layout=layout).state
    with writing_to(url):
        holder = read_holder(state)
        if holder is None or not is_running(state, holder):
            return holder
        if not takeover:
            raise OutputBusyError(busy_message(url, state, holder))
        order_id = give_order(state, "stop")
        if not holder.process.is_stopped():
            _wait_for_end(state, holder, order_id)
    return None


def _wait_for_end(state: Folder, holder: Holder, order_id: str) -> None:
    """Wait until a run that was told to stop has ended, as long as it deserves."""
    has_answered = False
    wait_until = time.monotonic() + (LOCAL_ANSWER_S if state.is_local else STORE_ANSWER_S)
    while time.monotonic() < wait_until and read_holder(state) == holder and holder.process.is_alive() is not False:
        if not has_answered and read_answer(state, order_id) is not None:
            has_answered = True
            wait_until = time.monotonic() + (LOCAL_STOP_S if state.is_local else STORE_STOP_S)
        time.sleep(0.2 if state.is_local else 1.0)


def busy_message(url: str, state: Folder, holder: Holder) -> str:
    """Return who runs the job in `url`, when it was last seen, and what to do."""
    process, seen_s = holder.process, age_s(last_seen_at(state, holder))
    return (
        f"another run of this job is in progress in {url!r}: process {process.pid} on {process.host}, since "
        f"{holder.started_at}, last seen {max(0.0, seen_s):.0f} s ago. Two runs would both pay. Watch it with:\n"
        f"  nemo-llm-stage status {url} --watch\nor stop it and take its place: run the same command with --takeover."
    )


@contextmanager
def keep_run(
    job: Job,
    *,
    before: Counters,
    num_rows: int,
    command: str | None,
    takeover: bool = False,
    dead: Holder | None = None,
) -> Iterator[RunKeeper]:
    """
    Hold the job's output folder for a run, and keep its status there.

    Args:
        job: Prepared.
        before: What earlier runs counted.
        num_rows: Rows of the run and of those before.
        command: What to run to resume the job; None where it was run from Python.
        takeover: Whether the folder may be taken from a run that did not stop.
        dead: The run that `make_room` has found dead; its folder is taken without watching it again.

    Raises:
        OutputBusyError: Another run has just begun there.
    """
    state, settings = job.output.state, job.settings
    holder = new_holder(uuid.uuid4().hex)
    with writing_to(job.output.url):
        _claim(job.output.url, state, holder, takeover=takeover, dead=dead)
    spent, elapsed_before_s = before_of(state, job.id)
    control = RunControl(settings, spent, job.stage.max_concurrent_requests, Timeline(holder.started_at))
    facts = JobFacts(
        job_id=job.id,
        num_rows=num_rows,
        is_exact=job.plan.is_exact,
        before=before,
        command=command,
        elapsed_before_s=elapsed_before_s,
    )
    with RunKeeper(state, holder, facts, control) as keeper:
        yield keeper


def _claim(url: str, state: Folder, holder: Holder, *, takeover: bool, dead: Holder | None) -> None:
    if publish_holder(state, holder):
        return
    other = read_holder(state)
    if other is not None and not takeover and other != dead and is_running(state, other):
        raise OutputBusyError(busy_message(url, state, other))
    replace_holder(state, holder)
    time.sleep(_SETTLE_S)
    other = read_holder(state)
    if other is not None and other.run_id != holder.run_id:
        raise OutputBusyError(busy_message(url, state, other))


def before_of(state: Folder, job_id: str) -> tuple[Spending, float]:
    """Return what earlier runs of the job spent and how many seconds they took, as the last of them wrote."""
    with suppress(LLMStageError, OSError, TypeError, ValueError):
        status = read_status(state)
        if status is not None and status.job_id == job_id:
            names = ("num_requests", "num_answers", "input_tokens", "output_tokens")
            return Spending(*(int(status.spending.get(name, 0)) for name in names)), float(status.elapsed_s)
    return Spending(), 0.0
