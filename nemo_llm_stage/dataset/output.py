"""
The output folder: committed files that a reader may take at any moment, and beside them what a job must remember.

```
out/part-00000.parquet …   one file a partition, whole from the moment it is there
out/_SUCCESS               every row is accounted for
out/_nemo_llm_stage/       job.json, journal/, tmp/; readers of datasets pass over names that begin with _
```
Knows files; knows nothing of how rows are generated.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.core import Completion, Counters, RowResult, Usage
from nemo_llm_stage.dataset.journal import retire_journal
from nemo_llm_stage.dataset.jsonl import read_lines, to_table
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import OutputConflictError, RunError

STATE = "_nemo_llm_stage"
SUCCESS = "_SUCCESS"
_JOB = f"{STATE}/job.json"
_TMP = f"{STATE}/tmp"  # noqa: S108 - a folder in the output
_SUMMARIES = f"{STATE}/commits"
_SUMMARY_KEY = b"nemo_llm_stage"
_ROWS_PER_GROUP = 16_384
_BYTES_PER_GROUP = 64 << 20


class OutputFolder:
    """
    The output of one job.

    Args:
        url: Path or fsspec URL of the folder.
        format: ``parquet`` or ``jsonl``.
    """

    def __init__(self, url: str, format: str = "parquet") -> None:  # noqa: A002 - the word users write in a job file
        self.folder = Folder(url)
        self.format = format

    @property
    def url(self) -> str:
        """Path or URL of the folder."""
        return self.folder.url

    def journal_folder(self, name: str = "") -> Folder:
        """Return the folder of the journals, or that of the partition whose file is `name`."""
        return Folder(f"{self.url}/{STATE}/journal/{name.partition('.')[0]}")

    def raw_folder(self, name: str) -> Folder:
        """Return the folder of the raw answers kept of the partition whose file is `name`."""
        return Folder(f"{self.url}/{STATE}/raw/{name.partition('.')[0]}")

    def name_of(self, partition: Partition) -> str:
        """Return the file name of a committed partition; names sort in input order up to 10^8 partitions."""
        return f"part-{partition.index:08}.{self.format}"

    def check_writable(self) -> None:
        """
        Refuse a folder that cannot be written, before anything is asked.

        Raises:
            OutputConflictError: It cannot be written, or holds files that no job of this package wrote.
        """
        try:
            if self.folder.fs.isfile(self.folder.path()):
                raise OutputConflictError(f"the output folder {self.url!r} is a file; choose a folder.")
            names = self.folder.names()
            if not self.folder.exists(_JOB) and names:
                raise OutputConflictError(
                    f"the output folder {self.url!r} already holds {min(names)!r}, which no job of this package "
                    "wrote; choose an empty or a new folder."
                )
            self.folder.make(_TMP)
            probe = f"{_TMP}/probe-{os.getpid()}"
            self.folder.fs.pipe_file(self.folder.path(probe), b"")
            self.folder.remove(probe)
        except OSError as error:
            raise OutputConflictError(f"cannot write the output folder {self.url!r}: {error}.") from error

    def read_job(self) -> dict[str, Any] | None:
        """
        Return what the job that owns this folder wrote of itself, or None for a new folder.

        Raises:
            OutputConflictError: The record is broken.
        """
        try:
            job: dict[str, Any] = orjson.loads(self.folder.read(_JOB))
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            raise OutputConflictError(f"{self.url}/{_JOB} is broken ({error}); choose a new output folder.") from error
        return job

    def write_job(self, job: dict[str, Any]) -> bool:
        """Claim the folder for `job`; whether this call was the first to."""
        return self.folder.publish_bytes(orjson.dumps(job), _JOB, scratch_sub=_TMP)

    def replace_job(self, job: dict[str, Any]) -> None:
        """Make `job` the one that owns this folder. Files of the one before are removed first."""
        self.remove_success()
        for name in self.committed():
            self.folder.remove(name)
            self.folder.remove(f"{_SUMMARIES}/{name}.json")
        self.folder.replace_bytes(orjson.dumps(job), _JOB, scratch_sub=_TMP)

    def tidy(self, *, keep_raw: bool) -> None:
        """Put away what workers that died left behind: journals of committed partitions, files not committed."""
        committed = {name.partition(".")[0]: name for name in self.committed()}
        for stem in self.journal_folder().folders() & committed.keys():
            retire_journal(self.journal_folder(stem), self.raw_folder(stem) if keep_raw else None)
        for name in self.folder.names(_TMP):
            self.folder.remove(f"{_TMP}/{name}")

    def committed(self) -> set[str]:
        """Return the names of the committed partitions' files."""
        return {name for name in self.folder.names() if name.startswith("part-") and name.endswith(f".{self.format}")}

    def writer(self, schema: pa.Schema) -> PartitionWriter:
        """Return a writer for one partition's file of `schema`, not yet visible."""
        return PartitionWriter(self, schema)

    def read_counters(self, name: str) -> Counters:
        """
        Return what a committed partition counted when it was written, without reading its rows.

        Raises:
            RunError: The file was not written by this package, or is damaged.
        """
        try:
            if self.format == "parquet":
                with self.folder.fs.open(self.folder.path(name), "rb") as raw:
                    text = pq.read_metadata(raw).metadata[_SUMMARY_KEY]
            elif self.folder.exists(f"{_SUMMARIES}/{name}.json"):
                text = self.folder.read(f"{_SUMMARIES}/{name}.json")
            else:
                return self._recount(name)  # its writer died between the file and the counts
        except (OSError, KeyError, TypeError, pa.ArrowException) as error:
            raise RunError(
                f"cannot read {self.url}/{name}: {error}. Remove the file and run the job again: it is made anew."
            ) from error
        return Counters(**orjson.loads(text))

    def _recount(self, name: str) -> Counters:
        """Count a JSONL file by its rows; tokens and attempts as far as the meta column has them."""
        column = (self.read_job() or {})["stage"]["output_column"]
        counters = Counters()
        for row in self._rows(name):
            meta = row.get(f"{column}_meta") or {}
            usage = Usage(meta.get("input_tokens"), meta.get("output_tokens"), meta.get("cached_tokens"))
            completion = Completion(texts=(), usage=usage)
            counters.count(RowResult(None, row[f"{column}_error"], completion, meta.get("attempts") or 0))
        return counters

    def count_rows(self, name: str) -> int:
        """Return how many rows the committed file holds, by looking at the file itself."""
        with self.folder.fs.open(self.folder.path(name), "rb") as raw:
            if self.format == "parquet":
                return int(pq.read_metadata(raw).num_rows)
            return sum(block.count(b"\n") for block in iter(lambda: raw.read(1 << 20), b""))

    def head(self, num_rows: int) -> list[dict[str, Any]]:
        """Return the first committed rows, at most `num_rows`, of the first files."""
        rows: list[dict[str, Any]] = []
        for name in sorted(self.committed()):
            rows.extend(itertools.islice(self._rows(name), num_rows - len(rows)))
            if len(rows) == num_rows:
                break
        return rows

    def read(self, name: str, schema: pa.Schema, *, rows_per_chunk: int) -> Iterator[pa.Table]:
        """Yield a committed file's rows in order, as tables of `schema` and at most `rows_per_chunk` rows."""
        if self.format == "parquet":
            with self.folder.fs.open(self.folder.path(name), "rb") as raw, pq.ParquetFile(raw) as file:
                for batch in file.iter_batches(batch_size=rows_per_chunk):
                    yield pa.Table.from_batches([batch]).cast(schema)
            return
        lines = read_lines(f"{self.url}/{name}")
        while chunk := list(itertools.islice(lines, rows_per_chunk)):
            yield to_table(f"{self.url}/{name}", chunk, schema)

    def _rows(self, name: str) -> Iterator[dict[str, Any]]:
        if self.format == "jsonl":
            yield from (orjson.loads(line) for _, line in read_lines(f"{self.url}/{name}"))
            return
        with self.folder.fs.open(self.folder.path(name), "rb") as raw, pq.ParquetFile(raw) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()

    def read_schema(self, name: str) -> pa.Schema:
        """Return the committed Parquet file's schema, without metadata."""
        with self.folder.fs.open(self.folder.path(name), "rb") as raw:
            return pq.read_schema(raw).remove_metadata()

    def write_success(self) -> None:
        """Tell readers that the output is complete."""
        self.folder.replace_bytes(b"", SUCCESS, scratch_sub=_TMP)

    def remove_success(self) -> None:
        """Take back `write_success`."""
        self.folder.remove(SUCCESS)


class PartitionWriter:
    """
    Writes a partition aside, group by group, and makes it visible as a whole.

    Holds at most one row group (16,384 rows or 64 MiB) in memory. Leaving its ``with`` block without `commit` leaves
    nothing behind.
    """

    def __init__(self, output: OutputFolder, schema: pa.Schema) -> None:
        self._output = output
        self._schema = schema
        self._scratch: Path = output.folder.scratch(_TMP, f".{output.format}")
        self._file: Any = None
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> Self:
        """Open the file aside."""
        if self._output.format == "parquet":
            self._file = pq.ParquetWriter(self._scratch, self._schema, compression="zstd")
        else:
            self._file = self._scratch.open("wb")
        return self

    def __exit__(self, *exc: object) -> None:
        """Close, and remove what was not committed."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._scratch.unlink(missing_ok=True)

    def write(self, table: pa.Table) -> None:
        """Append rows; `table` has exactly the writer's schema."""
        self._waiting.append(table)
        num_rows = sum(waiting.num_rows for waiting in self._waiting)
        if num_rows >= _ROWS_PER_GROUP or sum(waiting.nbytes for waiting in self._waiting) >= _BYTES_PER_GROUP:
            self._flush()

    def commit(self, name: str, counters: Counters) -> bool:
        """
        Make the file visible as `name`, durably, unless another worker has.

        Returns:
            Whether this call was the first; the file of the first stands.
        """
        summary = self._finish(counters)
        is_first = self._output.folder.publish(self._scratch, name)
        if is_first:
            self._write_summary(name, summary)
        return is_first

    def replace(self, name: str, counters: Counters) -> None:
        """Put the file in the place of the committed one, durably: a reader sees the one or the other, whole."""
        summary = self._finish(counters)
        self._output.folder.replace(self._scratch, name)
        self._write_summary(name, summary)

    def _finish(self, counters: Counters) -> bytes:
        self._flush()
        summary = orjson.dumps(asdict(counters))
        if self._output.format == "parquet":
            self._file.add_key_value_metadata({_SUMMARY_KEY: summary})
        self._file.close()
        self._file = None
        with self._scratch.open("rb") as file:
            os.fsync(file.fileno())
        return summary

    def _write_summary(self, name: str, summary: bytes) -> None:
        if self._output.format == "jsonl":  # a Parquet file has its counts in its footer
            self._output.folder.make(_SUMMARIES)
            self._output.folder.replace_bytes(summary, f"{_SUMMARIES}/{name}.json", scratch_sub=_TMP)

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting = []
        if self._output.format == "parquet":
            self._file.write_table(table)
        else:
            self._file.write(b"".join(orjson.dumps(row, default=str) + b"\n" for row in table.to_pylist()))
