"""
Which job an output folder belongs to now.

A worker may sleep while ``--restart`` gives the folder to another job. Before it makes anything visible, and before it
removes anything, it looks again. Knows the job's record; knows nothing of rows.
"""

from __future__ import annotations

import threading
from typing import Any

import orjson

from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import RunError

JOB = "job.json"


class Owner:
    """
    The job that owns an output folder. Safe for several threads.

    Args:
        state: The folder with the job's record, `JOB`.
    """

    def __init__(self, state: Folder) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._seen: str | None = None
        self._job_id: str | None = None

    def check(self, job_id: str) -> None:
        """
        Make sure that the folder still belongs to the job `job_id`. Costs a look at one file.

        Raises:
            RunError: Another job owns it now.
        """
        owner = self._read()
        if owner is not None and owner != job_id:
            raise RunError(
                f"another job has taken over {self._state.url!r} (it was started with --restart); this run stops. "
                "What it had not committed is thrown away."
            )

    def _read(self) -> str | None:
        """Return the id of the job in the record; None where there is no record or no id in it."""
        with self._lock:
            version = self._state.version_of(JOB)
            if version is not None and version != self._seen:  # the record of a large job has megabytes
                record: dict[str, Any] = orjson.loads(self._state.read(JOB))
                self._job_id, self._seen = record.get("id"), version
            return self._job_id if version is not None else None
