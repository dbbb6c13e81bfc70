"""
One partition's file: written aside, then visible as a whole, with its counts.

Knows files; knows nothing of how rows are generated or what else is in the folder.
"""

from __future__ import annotations

import base64
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import orjson
import pyarrow as pa

from nemo_llm_stage.core import Counters
from nemo_llm_stage.dataset.failpoints import reach
from nemo_llm_stage.dataset.parquet_file import annotations_of, open_writer
from nemo_llm_stage.dataset.parquet_footer import annotate
from nemo_llm_stage.dataset.storage import Folder, writing_to

STATE = "_nemo_llm_stage"
"""What a job keeps beside its output; readers of datasets pass over names that begin with _."""

TMP = f"{STATE}/tmp"  # noqa: S108 - a folder in the output
SUMMARIES = f"{STATE}/commits"
"""Counts of JSONL files; a Parquet file has them in its footer, under `SUMMARY_KEY`."""

SUMMARY_KEY = b"nemo_llm_stage"
_ROWS_PER_GROUP = 16_384
_BYTES_PER_GROUP = 16 << 20


class PartitionWriter:
    """
    Writes a partition aside, group by group, and makes it visible as a whole.

    Holds at most one row group (16,384 rows or 16 MiB) in memory. Leaving its ``with`` block without `commit` leaves
    nothing behind.

    Args:
        folder: The output folder.
        format: ``parquet`` or ``jsonl``.
        schema: Of the file.
        job_id: Of the job that writes; kept with the counts.

    Raises:
        RunError: From any method: the disk is full or access was taken away.
    """

    def __init__(self, folder: Folder, format: str, schema: pa.Schema, job_id: str) -> None:  # noqa: A002 - as in OutputFolder
        self._folder = folder
        self._job_id = job_id
        self._is_parquet = format == "parquet"
        self._schema = schema
        with writing_to(folder.url):
            self._scratch: Path = folder.scratch(TMP, f".{format}")
        self._file: Any = None
        self._waiting: list[pa.Table] = []
        self._num_rows = 0

    def __enter__(self) -> Self:
        """Open the file aside."""
        with writing_to(self._folder.url):
            if self._is_parquet:
                self._file = open_writer(self._scratch, self._schema)
            else:
                self._file = self._scratch.open("wb")
        return self

    def __exit__(self, *exc: object) -> None:
        """Close, and remove what was not committed."""
        file, self._file = self._file, None
        with suppress(OSError):  # a full disk takes no footer either
            if file is not None:
                file.close()
        with suppress(OSError):
            self._scratch.unlink(missing_ok=True)

    def write(self, table: pa.Table) -> None:
        """Append rows; `table` has exactly the writer's schema."""
        self._waiting.append(table)
        self._num_rows += table.num_rows
        num_rows = sum(waiting.num_rows for waiting in self._waiting)
        if num_rows >= _ROWS_PER_GROUP or sum(waiting.nbytes for waiting in self._waiting) >= _BYTES_PER_GROUP:
            with writing_to(self._folder.url):
                self._flush()

    def commit(self, name: str, counters: Counters) -> bool:
        """
        Make the file visible as `name`, durably, unless another worker has. Sets ``counters.num_written``.

        Returns:
            Whether this call was the first; the file of the first stands.
        """
        with writing_to(self._folder.url):
            summary = self._finish(counters)
            reach("commit.before_publish")
            is_first = self._folder.publish(self._scratch, name)
            reach("commit.after_publish")
            if is_first:
                self._write_summary(name, summary)
        return is_first

    def replace(self, name: str, counters: Counters) -> None:
        """
        Put the file in the place of the committed one, durably: a reader sees the one or the other, whole.

        Sets ``counters.num_written``.
        """
        with writing_to(self._folder.url):
            summary = self._finish(counters)
            if not self._is_parquet:  # the old counts must not stand beside the new rows, whenever this dies
                self._folder.remove(f"{SUMMARIES}/{name}.json")
            reach("commit.before_replace")
            self._folder.replace(self._scratch, name)
            reach("commit.between_replace")
            self._write_summary(name, summary)
            reach("commit.after_replace")

    def _finish(self, counters: Counters) -> bytes:
        self._flush()
        counters.num_written = self._num_rows
        summary = orjson.dumps({"job": self._job_id, "counters": asdict(counters)})
        if self._is_parquet:
            self._file.add_key_value_metadata({SUMMARY_KEY: summary})
        self._file.close()
        self._file = None
        if self._is_parquet:
            self._annotate()
        with suppress(FileNotFoundError), self._scratch.open("rb") as file:  # else tidied away: the job is finished
            os.fsync(file.fileno())
        return summary

    def _annotate(self) -> None:
        """Give the columns of the input the logical types that Arrow has dropped."""
        annotations = annotations_of(self._schema)
        if annotations:
            with suppress(FileNotFoundError):
                annotate(self._scratch, annotations)

    def _write_summary(self, name: str, summary: bytes) -> None:
        if not self._is_parquet:  # a Parquet file has its counts in its footer
            self._folder.make(SUMMARIES)
            self._folder.replace_bytes(summary, f"{SUMMARIES}/{name}.json", scratch_sub=TMP)

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting = []
        if self._is_parquet:
            self._file.write_table(table)
        else:
            self._file.write(b"".join(orjson.dumps(row, default=plain_json) + b"\n" for row in table.to_pylist()))


def plain_json(value: Any) -> str:
    """Return what JSON has no type for as text; bytes as Base64."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
