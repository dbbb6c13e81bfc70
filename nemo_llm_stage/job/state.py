"""
How a job stands, from its output folder alone: running, ended, or killed. True whatever happened to its driver.

Knows output folders; asks no process but for whether it is there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.owner import JOB
from nemo_llm_stage.dataset.state.holder import Holder, is_running, last_seen_at, read_holder
from nemo_llm_stage.dataset.state.json_file import age_s
from nemo_llm_stage.dataset.state.status import ENDED, JobStatus, read_status
from nemo_llm_stage.errors import LLMStageError
from nemo_llm_stage.job.record import read_record

KILLED = "killed"


@dataclass(frozen=True, slots=True)
class JobState:
    """
    How a job stands.

    Attributes:
        url: Its output folder.
        state: ``starting``, ``running``, ``paused``, ``draining``, ``finished``, ``stopped``, ``failed``, or ``killed``
            where the driver ended without a word.
        num_rows: Rows of the job.
        num_partitions: Of the plan.
        num_committed: Partitions with a file.
        seen_at: The last heartbeat; UTC, ISO 8601. None where no run has left one.
        holder: The run that holds the folder; None where none does.
        status: What the last run wrote; None where none has.
    """

    url: str
    state: str
    num_rows: int
    num_partitions: int
    num_committed: int
    seen_at: str | None = None
    holder: Holder | None = None
    status: JobStatus | None = None

    @property
    def is_live(self) -> bool:
        """Whether a run goes on."""
        return self.state not in (*ENDED, KILLED)

    @property
    def command(self) -> str:
        """What to run to resume the job."""
        command = None if self.status is None else self.status.command
        return command or "the same job again, from Python"

    @property
    def seen_s(self) -> float | None:
        """Seconds since the last heartbeat."""
        return None if self.seen_at is None else max(0.0, age_s(self.seen_at))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values: the status, with what the folder holds."""
        values: dict[str, Any] = {} if self.status is None else self.status.encode()
        return values | {
            "output": self.url,
            "state": self.state,
            "is_live": self.is_live,
            "num_rows": self.num_rows,
            "num_partitions": self.num_partitions,
            "num_committed": self.num_committed,
            "seen_at": self.seen_at,
            "holder": None if self.holder is None else asdict(self.holder),
        }


def read_state(url: str) -> JobState:
    """
    Return how the job in the output folder `url` stands. Costs a listing and a few small files.

    Raises:
        OutputConflictError: No job has written there, or a file is damaged.
        OSError: The folder cannot be read.
    """
    record = read_record(url)
    output = OutputFolder(url, record["output_format"])
    holder, status = read_holder(output.state), read_status(output.state)
    if status is not None and status.job_id != record["id"]:
        status = None  # of a job that was thrown away
    seen_at = None if status is None else status.updated_at
    if holder is not None:
        seen_at = last_seen_at(output.state, holder)
        is_its_own = status is not None and status.run_id == holder.run_id
        phase = status.phase if status is not None and is_its_own else "starting"
        gone = "finished" if output.is_complete() else KILLED  # it was killed after its last file
        state = (phase if phase not in ENDED else "running") if is_running(output.state, holder) else gone
    elif output.is_complete():
        state = "finished"
    elif status is None:
        state = "stopped"
    else:
        state = status.phase if status.phase in ENDED else KILLED
    num_partitions, num_committed = len(record["partitions"]), len(output.committed())
    if state == "finished" and num_committed < num_partitions:
        state = "stopped"  # files were removed since
    return JobState(
        url=url,
        state=state,
        num_rows=record["num_rows"] if status is None else status.num_rows,
        num_partitions=num_partitions,
        num_committed=num_committed,
        seen_at=seen_at,
        holder=holder,
        status=status,
    )


def is_live(url: str) -> bool:
    """Whether a run goes on in the output folder `url`; False where that cannot be read."""
    try:
        return read_state(url).is_live
    except (LLMStageError, OSError):
        return False


def find_jobs(url: str, max_depth: int = 4) -> list[str]:
    """
    Return the output folders at and below `url`, sorted. What lies in an output folder is not looked at.

    Raises:
        OSError: A folder cannot be read.
    """
    output = OutputFolder(url)
    if output.state.exists(JOB):
        return [url]
    if max_depth == 0:
        return []
    names = sorted(name for name in output.folder.folders() if not PurePosixPath(name).name.startswith((".", "_")))
    return [found for name in names for found in find_jobs(f"{output.url}/{name}", max_depth - 1)]
