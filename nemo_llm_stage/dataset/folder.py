"""
The output folder: committed files that a reader may take at any moment, and the state of the job that writes them.

`layout` says where the state is. Knows files; knows nothing of how rows are generated.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.arrow_types import conform
from nemo_llm_stage.dataset.arrow_values import shown_rows
from nemo_llm_stage.dataset.bad_input import BadInput, read_bad_input, write_bad_input
from nemo_llm_stage.dataset.failpoints import reach
from nemo_llm_stage.dataset.gather import remove_streams
from nemo_llm_stage.dataset.job_folder import PREFIX, JobFolder
from nemo_llm_stage.dataset.journal import retire_journal
from nemo_llm_stage.dataset.journal_stream import STREAMS
from nemo_llm_stage.dataset.json_text import parse
from nemo_llm_stage.dataset.jsonl import read_lines
from nemo_llm_stage.dataset.parquet_file import open_parquet
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.recount import recount
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.dataset.summary import TMP, Summary, read_summary, remove_summary
from nemo_llm_stage.dataset.writer import PartitionWriter
from nemo_llm_stage.dataset.writing import writing_to
from nemo_llm_stage.errors import RunError

BAD_FILES = "files"
"""Stands for whole files of the input in `OutputFolder.write_bad_input`."""

BAD_INPUT = "bad_input"
JOURNAL = "journal"
RAW = "raw"
"""Names of folders of the state."""


class OutputFolder(JobFolder):
    """The output of one job: its committed files, and what is written down about them."""

    def journal_folder(self, name: str = "") -> Folder:
        """Return the folder of the journals, or that of the partition whose file is `name`."""
        return Folder(f"{self.state.url}/{JOURNAL}/{name.partition('.')[0]}")

    def raw_folder(self, name: str = "") -> Folder:
        """Return the folder of the raw answers that are kept, or of those of the partition whose file is `name`."""
        return Folder(f"{self.state.url}/{RAW}/{name.partition('.')[0]}")

    def name_of(self, partition: Partition) -> str:
        """Return the file name of a committed partition; names sort in input order up to 10^8 partitions."""
        return f"{PREFIX}{partition.index:08}.{self.format}"

    def replace_job(self, job: dict[str, Any]) -> None:
        """Make `job` the one that owns this folder. Files of the one before are removed first."""
        reach("restart.before")
        with writing_to(self.url):
            self.remove_success()
            for name in self.data_files():
                remove_summary(self.state, name)
                self.folder.remove(name)
                reach("restart.between")
            self.replace_record(job)
        reach("restart.after")

    def extend_job(self, job: dict[str, Any]) -> None:
        """Make `job`, which has more partitions than it had, the one that owns this folder. Committed files stay."""
        reach("extend.before")
        with writing_to(self.url):
            self.remove_success()
            self.replace_record(job)
        reach("extend.after")

    def tidy(self, committed: Collection[str], folders: Collection[str], *, keep_raw: bool) -> None:
        """
        Put away what workers that died left behind: journals of committed partitions, files not committed.

        Args:
            committed: Names of the committed files.
            folders: Names of those in the state folder.
            keep_raw: Whether the answers in the journals are kept.
        """
        stems = {name.partition(".")[0] for name in committed}
        with writing_to(self.url):
            for stem in self.journal_folder().folders() & stems if JOURNAL in folders else ():
                retire_journal(self.journal_folder(stem), self.raw_folder(stem) if keep_raw else None)
            if STREAMS in folders:
                remove_streams(self.state)
            for name in self.state.names(TMP) if TMP in folders else ():
                self.state.remove(f"{TMP}/{name}")

    def write_bad_input(self, name: str, records: Sequence[BadInput]) -> None:
        """Write down what was left out of the partition whose file is `name`, or, as `BAD_FILES`, of whole files."""
        with writing_to(self.url):
            write_bad_input(self.state, _record_of_bad(name), records, scratch_sub=TMP)

    def read_bad_input(self, name: str) -> list[BadInput]:
        """Return what `write_bad_input` wrote down."""
        return read_bad_input(self.state, _record_of_bad(name))

    def left_out(self, num_records: int) -> list[BadInput]:
        """Return the first of all that was left out and written down, whole files first, at most `num_records`."""
        folder = Folder(f"{self.state.url}/{BAD_INPUT}")
        names = sorted(folder.names(), key=lambda name: (name != f"{BAD_FILES}.jsonl", name))
        records = (record for name in names for record in read_bad_input(folder, name))
        return list(itertools.islice(records, num_records))

    def committed(self) -> set[str]:
        """Return the names of the committed partitions' files."""
        return {name for name in self.data_files() if name.endswith(f".{self.format}")}

    def has(self, name: str, job_id: str) -> bool:
        """Whether the partition whose file is `name` is committed, by the job `job_id` beyond doubt."""
        with writing_to(self.url):
            if not self.folder.exists(name):
                return False
        summary = self.read_summary(name)
        return summary is not None and summary.job_id == job_id

    def writer(self, schema: pa.Schema, job_id: str = "") -> PartitionWriter:
        """Return a writer for one partition's file of `schema`, not yet visible."""
        return PartitionWriter(
            self.folder, self.state, format=self.format, schema=schema, job_id=job_id, owner=self.owner
        )

    def read_counters(self, name: str) -> Counters:
        """
        Return what a committed partition counted when it was written, without reading its rows.

        Raises:
            RunError: The file was not written by this package, or is damaged.
        """
        summary = self.read_summary(name)
        return self._recount(name) if summary is None else summary.counters

    def read_summary(self, name: str) -> Summary | None:
        """Return a committed file's summary, None where it is lost; raises as `read_counters`."""
        try:
            return read_summary(self.folder, self.state, name)
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise self._unreadable(name, error) from error

    def _unreadable(self, name: str, error: Exception) -> RunError:
        why = str(error).rstrip(".")
        return RunError(
            f"cannot read {self.url}/{name}: {why}. Remove the file and run the job again: it is made anew."
        )

    def _recount(self, name: str) -> Counters:
        """Count a JSONL file by its rows: its writer died between the file and its summary."""
        num_left_out = sum(record.num_rows for record in self.read_bad_input(name))
        number = int(name.partition(".")[0].removeprefix(PREFIX))
        return recount(self.rows(name), self.read_job() or {}, number, num_left_out)

    def head(self, num_rows: int) -> list[dict[str, Any]]:
        """Return the first committed rows, at most `num_rows`, of the first files."""
        rows: list[dict[str, Any]] = []
        for name in sorted(self.committed()):
            rows.extend(itertools.islice(self.rows(name), num_rows - len(rows)))
            if len(rows) == num_rows:
                break
        return rows

    def read(self, name: str, schema: pa.Schema, *, rows_per_chunk: int) -> Iterator[pa.Table]:
        """Yield a committed Parquet file's rows in order, as tables of `schema` and at most `rows_per_chunk` rows."""
        with (
            self.folder.fs.open(self.folder.path(name), "rb") as raw,
            open_parquet(raw, page_checksum_verification=True) as file,
        ):
            for batch in file.iter_batches(batch_size=rows_per_chunk):
                yield conform(pa.Table.from_batches([batch]), schema)

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """
        Yield a committed file's rows in order, as plain values.

        Raises:
            RunError: The file is damaged, or was removed.
        """
        rows = self._parsed_lines(name) if self.format == "jsonl" else self._parquet_rows(name)
        try:
            yield from rows
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._unreadable(name, error) from error

    def _parsed_lines(self, name: str) -> Iterator[dict[str, Any]]:
        yield from (parse(line) for _, line in self.lines(name))

    def _parquet_rows(self, name: str) -> Iterator[dict[str, Any]]:
        with (
            self.folder.fs.open(self.folder.path(name), "rb") as raw,
            open_parquet(raw, page_checksum_verification=True) as file,
        ):
            for batch in file.iter_batches(batch_size=256):
                yield from shown_rows(batch)

    def lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        """Yield a committed JSONL file's lines in order, each with its offset."""
        return read_lines(f"{self.url}/{name}")


def _record_of_bad(name: str) -> str:
    return f"{BAD_INPUT}/{name.partition('.')[0]}.jsonl"
