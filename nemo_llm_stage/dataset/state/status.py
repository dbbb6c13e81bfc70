"""
``status.json``: how a run stands, for people and programs that do not run it.

Replaced as a whole every 2 s on local disks and every 10 s on object stores, by the driver of the run, and once more at
its end. `updated_at` is the run's heartbeat. Version 1; a reader passes over keys that it does not know:

```
version       1
run_id        of the run that wrote it; job_id: of the job, as in job.json
phase         starting, running, paused, draining, finished, stopped or failed
reason        why it is paused, draining, stopped or failed; null else
process       host, machine, pid, started
started_at    of the run; updated_at: of this file; times are UTC, ISO 8601
interval_s    seconds between two writes
elapsed_s     seconds of all runs of this job
command       what to run to resume the job; null where it was run from Python
num_rows      rows of the job; is_exact: whether they were counted
num_rows_before  rows finished before this run
counters      what the whole job counted, as in the committed files
num_in_flight, max_concurrent_requests   requests, over all workers
rows_per_s, input_tokens_per_s, output_tokens_per_s   over the last minute
eta_s         seconds left at this speed; null where it is not known
spending      num_requests, num_answers, input_tokens, output_tokens, cost, gpu_hours and gpu_cost of all its runs
limits        the limits that hold now
trouble       why rows wait for the server; null if they do not
endpoints     one object for each server
failures      kind, num and example, most frequent first
rows          a few of the newest finished rows; long texts are cut
events        the newest events: at, kind, text
```
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.state.json_file import age_s, read_json, write_json
from nemo_llm_stage.dataset.state.process import ProcessIdentity
from nemo_llm_stage.dataset.storage import Folder

STATUS = "status.json"
VERSION = 1

LOCAL_INTERVAL_S = 2.0
STORE_INTERVAL_S = 10.0

ENDED = ("finished", "stopped", "failed")
"""Phases of a run that is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """How a run stands; the module's text says what each field means."""

    run_id: str
    job_id: str
    phase: str
    process: ProcessIdentity
    started_at: str
    updated_at: str
    interval_s: float
    elapsed_s: float = 0.0
    reason: str | None = None
    command: str | None = None
    num_rows: int = 0
    is_exact: bool = True
    num_rows_before: int = 0
    counters: Counters = field(default_factory=Counters)
    num_in_flight: int = 0
    max_concurrent_requests: int = 0
    rows_per_s: float = 0.0
    input_tokens_per_s: float = 0.0
    output_tokens_per_s: float = 0.0
    eta_s: float | None = None
    spending: dict[str, float] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    trouble: str | None = None
    endpoints: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def encode(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {"version": VERSION, **values, "process": asdict(self.process), "counters": asdict(self.counters)}

    @classmethod
    def decode(cls, values: dict[str, Any]) -> JobStatus:
        """
        Return what `encode` gave; keys of later versions are ignored.

        Raises:
            KeyError: Something is missing; also TypeError, ValueError and AttributeError.
        """
        age_s(values["updated_at"])
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        names = {item.name for item in fields(Counters)}
        counters = {name: value for name, value in values["counters"].items() if name in names}
        known |= {"process": ProcessIdentity(**values["process"]), "counters": Counters(**counters)}
        return cls(**known)


def write_status(state: Folder, status: JobStatus) -> None:
    """
    Replace the status.

    Raises:
        OSError: It cannot be written.
    """
    write_json(state, STATUS, status.encode())


def read_status(state: Folder) -> JobStatus | None:
    """
    Return the status; None where no run has written one.

    Raises:
        OutputConflictError: It is damaged.
        OSError: It cannot be read.
    """
    return read_json(state, STATUS, JobStatus.decode, version=VERSION)
