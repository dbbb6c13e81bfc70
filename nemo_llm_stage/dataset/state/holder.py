"""
``run.json``: which run holds an output folder. It is there while a run goes on, so that no second one pays twice.

The first run to publish it holds the folder. A run that ends removes it; one that was killed leaves it, and the next
run finds it stale: its process is gone where the host is the same, else its heartbeat has stood still. Version 1:

```
version     1
run_id      of the run
process     host, machine, pid, started
started_at  UTC, ISO 8601
```
Whoever takes a folder over replaces the file; the run before sees at its next look that it is no longer its own.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from nemo_llm_stage.dataset.state.json_file import TMP, age_s, dumped, now, read_json, write_json
from nemo_llm_stage.dataset.state.process import ProcessIdentity, this_process
from nemo_llm_stage.dataset.state.status import LOCAL_INTERVAL_S, STORE_INTERVAL_S, read_status
from nemo_llm_stage.dataset.storage import Folder

RUN = "run.json"
VERSION = 1

NUM_MISSED_BEATS = 15
"""A heartbeat is stale after so many intervals: 30 s on local disks, 150 s on object stores."""

MAX_SKEW_S = 3600.0
"""Clocks of machines differ by less: a heartbeat that is older is stale without a second look."""


@dataclass(frozen=True, slots=True)
class Holder:
    """
    The run that holds a folder.

    Attributes:
        run_id: Its id.
        process: Its driver.
        started_at: When it began.
    """

    run_id: str
    process: ProcessIdentity
    started_at: str

    def encode(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def decode(cls, values: dict[str, Any]) -> Holder:
        """Return what `encode` gave; raises KeyError, TypeError or ValueError."""
        age_s(values["started_at"])
        return cls(values["run_id"], ProcessIdentity(**values["process"]), values["started_at"])


def new_holder(run_id: str) -> Holder:
    """Return this process as the holder of a run that begins now."""
    return Holder(run_id, this_process(), now())


def read_holder(state: Folder) -> Holder | None:
    """
    Return the run that holds the folder; None where none does.

    Raises:
        OutputConflictError: The file is damaged.
        OSError: It cannot be read.
    """
    return read_json(state, RUN, Holder.decode, version=VERSION)


def publish_holder(state: Folder, holder: Holder) -> bool:
    """Make `holder` the run that holds the folder, unless another is there; whether this call did."""
    state.make()
    return state.publish_bytes(dumped(holder.encode()), RUN, scratch_sub=TMP)


def replace_holder(state: Folder, holder: Holder) -> None:
    """Take the folder over, whoever holds it."""
    write_json(state, RUN, holder.encode())


def remove_holder(state: Folder, run_id: str) -> None:
    """Give the folder back, if the run `run_id` still holds it."""
    holder = read_holder(state)
    if holder is not None and holder.run_id == run_id:
        state.remove(RUN)


def last_seen_at(state: Folder, holder: Holder) -> str:
    """Return the time of the last heartbeat of a run; its start where it has written none."""
    status = read_status(state)
    return status.updated_at if status is not None and status.run_id == holder.run_id else holder.started_at


def is_running(state: Folder, holder: Holder) -> bool:
    """
    Whether the run that holds the folder goes on.

    On the same host its process tells. Else a heartbeat tells that is younger than 15 intervals. As clocks of machines
    differ, one that is older by less than an hour, or that is to come, is watched for two intervals: if it moves, the
    run goes on.
    """
    is_alive = holder.process.is_alive()
    if is_alive is not None:
        return is_alive
    interval_s = LOCAL_INTERVAL_S if state.is_local else STORE_INTERVAL_S
    seen_at = last_seen_at(state, holder)
    if abs(age_s(seen_at)) < NUM_MISSED_BEATS * interval_s:
        return True
    if age_s(seen_at) > MAX_SKEW_S:
        return False
    watched_until = time.monotonic() + 2 * interval_s
    while time.monotonic() < watched_until:
        time.sleep(min(1.0, interval_s / 2))
        if last_seen_at(state, holder) != seen_at:
            return True
    return False
