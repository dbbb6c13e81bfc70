"""
What a committed file counts, and which job wrote it.

A Parquet file has this in its footer; a JSONL file has it beside it, in ``commits/`` of the job's state. Knows counts
and bytes; knows nothing of rows.
"""

from __future__ import annotations

import io
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.parquet_file import read_metadata
from nemo_llm_stage.dataset.storage import Folder

SUMMARY_KEY = b"nemo_llm_stage"
"""Key of the summary in a Parquet file's metadata."""

FOOTER_BYTES = 64 << 10
"""Of the end of a Parquet file in an object store, which hold its footer unless it has thousands of columns."""

TMP = "tmp"
COMMITS = "commits"


@dataclass(frozen=True, slots=True)
class Summary:
    """
    What a committed file says about itself.

    Attributes:
        job_id: Of the job that wrote it.
        counters: What its rows count.
        checksum: Of a JSONL file and of this summary, as 8 hex digits; see `checksum_over`. A Parquet file holds its
            own, and files of older versions have none.
    """

    job_id: str
    counters: Counters
    checksum: str | None = None

    def encode(self) -> bytes:
        """Return it as JSON."""
        values = {"job": self.job_id, "counters": asdict(self.counters)}
        return orjson.dumps(values if self.checksum is None else values | {"checksum": self.checksum})

    def checksum_over(self, rows: int) -> str:
        """Return the checksum of this summary and of rows whose bytes have the CRC-32 `rows`."""
        return f"{zlib.crc32(replace(self, checksum=None).encode(), rows):08x}"

    @classmethod
    def decode(cls, data: bytes) -> Summary:
        """
        Return what `encode` wrote.

        Raises:
            ValueError: It is damaged; also KeyError and TypeError.
        """
        values: dict[str, Any] = orjson.loads(data)
        return cls(values["job"], Counters.of(values["counters"]), values.get("checksum"))


def read_footer(folder: Folder, name: str) -> pq.FileMetaData:
    """
    Return the footer of a Parquet file.

    Raises:
        OSError: It cannot be read.
        pyarrow.ArrowException: It is damaged.
    """
    if not folder.is_local:  # one request in place of three
        with suppress(OSError, ValueError, pa.ArrowException):
            return read_metadata(io.BytesIO(folder.tail(name, FOOTER_BYTES)))
    with folder.fs.open(folder.path(name), "rb") as raw:
        return read_metadata(raw)


def read_summary(folder: Folder, state: Folder, name: str) -> Summary | None:
    """
    Return the summary of a committed file; None for a JSONL file whose writer died before it wrote one.

    Args:
        folder: Has the file.
        state: The job's state.
        name: The file's.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged; also `pyarrow.ArrowException`, KeyError and TypeError.
    """
    if name.endswith(".parquet"):
        return Summary.decode(read_footer(folder, name).metadata[SUMMARY_KEY])
    try:
        return Summary.decode(state.read(f"{COMMITS}/{name}.json"))
    except FileNotFoundError:
        return None


def publish_summary(state: Folder, name: str, summary: Summary) -> bool:
    """Write the summary of a committed JSONL file, unless there is one; whether there was none."""
    state.make(COMMITS)
    return state.publish_bytes(summary.encode(), f"{COMMITS}/{name}.json", scratch_sub=TMP)


def write_summary(state: Folder, name: str, summary: Summary) -> None:
    """Write the summary of a committed JSONL file."""
    state.make(COMMITS)
    state.replace_bytes(summary.encode(), f"{COMMITS}/{name}.json", scratch_sub=TMP)


def remove_summary(state: Folder, name: str) -> None:
    """Remove the summary of a JSONL file, if there is one."""
    state.remove(f"{COMMITS}/{name}.json")
