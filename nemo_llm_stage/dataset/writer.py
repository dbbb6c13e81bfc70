"""
The file of one partition: written to a scratch file, then published as a whole, with its counts.

Knows files; knows nothing of how rows are generated, or of the other files in the folder.
"""

from __future__ import annotations

import os
import time
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset import checksum
from nemo_llm_stage.dataset.failpoints import reach
from nemo_llm_stage.dataset.file_stat import FileStat, local_stat
from nemo_llm_stage.dataset.json_lines import beside_lines
from nemo_llm_stage.dataset.owner import Owner
from nemo_llm_stage.dataset.parquet_file import annotations_of, open_writer
from nemo_llm_stage.dataset.parquet_footer import annotate
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.dataset.summary import (
    SUMMARY_KEY,
    TMP,
    Summary,
    publish_summary,
    read_summary,
    remove_summary,
    write_summary,
)
from nemo_llm_stage.dataset.writing import writing_to
from nemo_llm_stage.errors import RunError

_ROWS_PER_GROUP = 16_384
_BYTES_PER_GROUP = 16 << 20
_PAUSES_S = (0.05, 0.2, 1.0)
"""Seconds to wait for the counts of a JSONL file that another worker has just published; then that worker is dead."""


class PartitionWriter:
    """
    Writes a partition to a scratch file, group by group, and publishes it as a whole.

    Holds at most one row group (16,384 rows or 16 MiB) in memory. If its ``with`` block ends without `commit`, the
    scratch file is removed.

    Args:
        folder: The output folder.
        state: The folder of the job's state.
        format: ``parquet`` or ``jsonl``.
        schema: Of the file.
        job_id: Of the job that writes; written with the counts.
        owner: Knows whether the folder still belongs to that job.

    Attributes:
        stat: Of the committed file; None before, and where another worker's stands.

    Raises:
        RunError: From any method: the disk is full, or the folder may no longer be written.
    """

    def __init__(
        self,
        folder: Folder,
        state: Folder,
        *,
        format: str,  # noqa: A002 - as in OutputFolder
        schema: pa.Schema,
        job_id: str,
        owner: Owner,
    ) -> None:
        self._folder = folder
        self._state = state
        self._job_id = job_id
        self._owner = owner
        self._is_parquet = format == "parquet"
        self._schema = schema
        with writing_to(folder.url):
            self._scratch: Path = state.scratch(TMP, f".{format}")
        self._file: Any = None
        self._waiting: list[pa.Table] = []
        self.stat: FileStat | None = None
        self._num_rows = self._num_bytes = 0
        self._checksum = 0  # of a JSONL file's rows

    def __enter__(self) -> Self:
        """Open the scratch file."""
        with writing_to(self._folder.url):
            if self._is_parquet:
                self._file = open_writer(self._scratch, self._schema)
            else:
                self._file = self._scratch.open("wb")
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the file; remove it if it was not committed."""
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
        Publish the file as `name`, durably, unless another worker of the job has. Sets ``counters.num_written``.

        A file of an earlier job, whose worker finished late, is replaced.

        Returns:
            Whether this file was published. If not, another worker's was, with the same rows.

        Raises:
            RunError: Another job owns the folder now. The journal stays.
        """
        with writing_to(self._folder.url):
            summary = self._finish(counters)
            self._owner.check(self._job_id, is_first_look=True)
            reach("commit.before_publish")
            is_first = self._folder.publish(self._scratch, name)
            reach("commit.after_publish")
            self._owner.check(self._job_id)
            if is_first:
                self._write_summary(name, summary)
                self._note_stat(name)
                return True
            if self._is_committed_by_this_job(name):
                return False
            self._put_in_place(name, summary)
            return True

    def replace(self, name: str, counters: Counters) -> None:
        """
        Replace the committed file `name` by this one, durably. A reader sees the old file or the new one as a whole.

        Sets ``counters.num_written``.

        Raises:
            RunError: Another job owns the folder now.
        """
        with writing_to(self._folder.url):
            summary = self._finish(counters)
            self._owner.check(self._job_id)
            self._put_in_place(name, summary)

    def _is_committed_by_this_job(self, name: str) -> bool:
        for pause_s in (*_PAUSES_S, None):
            committed = read_summary(self._folder, self._state, name)
            if committed is not None:
                return committed.job_id == self._job_id
            if pause_s is not None:  # a JSONL file whose writer may be about to write its summary
                time.sleep(pause_s)
        return False

    def _put_in_place(self, name: str, summary: Summary) -> None:
        if not self._is_parquet:  # the old counts must not stand beside the new rows, whenever this dies
            remove_summary(self._state, name)
        reach("commit.before_replace")
        self._folder.replace(self._scratch, name)
        try:
            self._owner.check(self._job_id)
        except RunError:  # this worker has slept, and may have replaced a file of the new owner, who makes it anew
            self._folder.remove(name)
            raise
        reach("commit.between_replace")
        self._write_summary(name, summary)
        self._note_stat(name)
        reach("commit.after_replace")

    def _finish(self, counters: Counters) -> Summary:
        self._flush()
        counters.num_written = self._num_rows
        summary = Summary(self._job_id, counters)
        if self._is_parquet:
            self._file.add_key_value_metadata({SUMMARY_KEY: summary.encode(), checksum.KEY: checksum.PLACEHOLDER})
        else:
            summary = replace(summary, checksum=summary.checksum_over(self._checksum))
        self._file.close()
        self._file = None
        if self._is_parquet:
            with suppress(FileNotFoundError):  # tidied away: the job is finished
                self._annotate()
                checksum.seal(self._scratch)
        with suppress(FileNotFoundError), self._scratch.open("rb") as file:  # else tidied away: the job is finished
            os.fsync(file.fileno())
            self._num_bytes = os.fstat(file.fileno()).st_size
        return summary

    def _note_stat(self, name: str) -> None:
        """Look at the file that has just been made visible; of one in a store, only its size is known."""
        if not self._folder.is_local:
            self.stat = FileStat(self._num_bytes)
            return
        with suppress(FileNotFoundError):  # another run throws it away
            self.stat = local_stat(Path(self._folder.path(name)))

    def _annotate(self) -> None:
        """Write the logical types of input columns that Arrow does not write."""
        annotations = annotations_of(self._schema)
        if annotations:
            annotate(self._scratch, annotations)

    def _write_summary(self, name: str, summary: Summary) -> None:
        reach("commit.before_summary")
        if self._is_parquet:  # it has its counts in its footer
            return
        if not publish_summary(self._state, name, summary):  # a lost file's, or that of a new owner
            self._owner.check(self._job_id)
            write_summary(self._state, name, summary)
        try:
            self._owner.check(self._job_id)
        except RunError:  # this worker has slept
            if self._is_own(read_summary(self._folder, self._state, name)):
                remove_summary(self._state, name)
            raise

    def _is_own(self, summary: Summary | None) -> bool:
        return summary is not None and summary.job_id == self._job_id

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting = []
        if self._is_parquet:
            self._file.write_table(table.rename_columns(self._file.schema.names))
        else:
            data = b"".join(line + b"\n" for line in beside_lines(table))
            self._checksum = zlib.crc32(data, self._checksum)
            self._file.write(data)
