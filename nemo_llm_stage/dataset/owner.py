"""
Which job an output folder belongs to now.

A worker may sleep while ``--restart`` gives the folder to another job. Before it makes anything visible, and before it
removes anything, it looks again. Knows the job's record; knows nothing of rows.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Mapping
from typing import Any

import orjson

from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import OutputConflictError, RunError

JOB = "job.json"
_CHECKSUM = "checksum"
_RECENT_S = 1.0


def encode_record(job: Mapping[str, Any]) -> bytes:
    """Return a job's record as JSON, with a checksum as its last field."""
    return orjson.dumps({**job, _CHECKSUM: _checksum(orjson.dumps(job))})


def decode_record(data: bytes) -> dict[str, Any]:
    """
    Return what `encode_record` was given. Records of older versions have no checksum.

    Raises:
        ValueError: It is damaged.
    """
    record = orjson.loads(data)
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - damage, not a caller's mistake
    checksum = record.pop(_CHECKSUM, None)
    is_old = checksum is None and not data.endswith(b'"}')  # a new one ends with its checksum, whatever its key is now
    if not is_old and checksum != _checksum(orjson.dumps(record)):
        raise ValueError("it does not fit its checksum")
    return record


def damaged_record(state_url: str, error: Exception) -> OutputConflictError:
    """Return the error to raise where a job's record cannot be understood."""
    return OutputConflictError(
        f"{state_url}/{JOB} is damaged: {error}. Restore it from a copy, or choose a new output folder."
    )


def _checksum(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"


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
        self._looked_s = float("-inf")

    def check(self, job_id: str, *, is_first_look: bool = False) -> None:
        """
        Make sure that the folder still belongs to the job `job_id`. Costs a look at one file.

        Args:
            job_id: The job.
            is_first_look: Whether there will be another look before anything is reported: on an object store, where a
                look is a request, one of the last second will do.

        Raises:
            RunError: Another job owns it now.
        """
        asked_s = time.monotonic()
        is_recent_enough = is_first_look and not self._state.is_local
        owner = self._seen_since(asked_s - _RECENT_S if is_recent_enough else asked_s)
        if owner is not None and owner != job_id:
            raise RunError(
                f"another job has taken over {self._state.url!r} (it was started with --restart); this run stops. "
                "What it had not committed is thrown away."
            )

    def _seen_since(self, asked_s: float) -> str | None:
        """
        Return the id of the job in the record; None where there is no record or no id in it.

        A look that began after `asked_s` will do: of threads that wait for one, the next serves all.
        """
        with self._lock:
            if self._looked_s >= asked_s:
                return self._job_id
            looked_s = time.monotonic()
            version = self._state.version_of(JOB)
            if version is not None and version != self._seen:  # the record of a large job has megabytes
                try:
                    record = decode_record(self._state.read(JOB))
                except ValueError as error:
                    raise RunError(f"{self._state.url}/{JOB} is damaged: {error}.") from error
                self._job_id, self._seen = record.get("id"), version
            self._looked_s = looked_s if version is not None else float("-inf")
            return self._job_id if version is not None else None
