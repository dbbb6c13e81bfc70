"""
The worker: takes a partition to a committed file.

One stage, so one client, one limit and one event loop, for all partitions it runs at once; each `run` call blocks the
thread it is made from, which also does the partition's reading and writing. Knows no Ray.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa

from nemo_llm_stage.core import Counters, RowResult
from nemo_llm_stage.dataset.bad_input import BadInput
from nemo_llm_stage.dataset.cursor import ParquetCursors
from nemo_llm_stage.dataset.failpoints import reach
from nemo_llm_stage.dataset.journal import FLUSH_INTERVAL_S, Journal
from nemo_llm_stage.dataset.output import OutputFolder
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.dataset.storage import writing_to
from nemo_llm_stage.dataset.writer import PartitionWriter
from nemo_llm_stage.job.garbage import collect_as_usual, collect_rarely
from nemo_llm_stage.job.retry import failed_rows, put_back, to_columns
from nemo_llm_stage.stage.stage import LLMStage

ROWS_PER_CHUNK = 1024
"""Rows read, asked and written at once: what a partition holds in memory does not depend on its size."""

MAX_OPEN_ROWS = 64 * ROWS_PER_CHUNK
"""Rows of one partition read and not yet written: a slow row holds up writing, not asking, this far."""

ROWS_OPEN_PER_PERMIT = 12
"""Rows that a worker has open for each permit, over its partitions, so that no permit waits for a row."""

MIN_PARTITIONS_AT_ONCE = 3
MAX_PARTITIONS_AT_ONCE = 64


@dataclass(frozen=True)
class WorkerSpec:
    """
    What makes a worker, in any process.

    Attributes:
        stage: Not yet opened.
        output_url: The output folder.
        output_format: ``parquet`` or ``jsonl``.
        input_schema: Of every partition.
        rows_per_partition: The usual number, for sizing.
        keep_raw: Whether the raw answers are kept after the commit.
        job_id: Of the job; kept with each file.
        skips_bad_input: Whether input that cannot be read is left out and recorded; else it stops the run.
        flush_interval_s: See `Journal`.
        retry_kinds: None for a partition that is not committed yet. Else the partition is, and its rows that failed
            with one of these kinds, or with any where there are none, are asked again.
    """

    stage: LLMStage
    output_url: str
    output_format: str
    input_schema: pa.Schema
    rows_per_partition: int
    keep_raw: bool = False
    job_id: str = ""
    skips_bad_input: bool = False
    flush_interval_s: float = FLUSH_INTERVAL_S
    retry_kinds: frozenset[str] | None = None

    @property
    def num_partitions_at_once(self) -> int:
        """How many partitions a worker runs side by side, so that there is always a next row to send."""
        permits = int(getattr(self.stage.client, "max_concurrent_requests", 1))
        wanted = -(-ROWS_OPEN_PER_PERMIT * permits // max(1, self.rows_per_partition))
        return min(MAX_PARTITIONS_AT_ONCE, max(MIN_PARTITIONS_AT_ONCE, wanted))


@dataclass(frozen=True)
class PartitionReport:
    """
    One partition is committed.

    Attributes:
        index: The partition's.
        name: The committed file's.
        counters: What the file holds.
        is_first: False where another worker had committed it before; that one's file stands.
    """

    index: int
    name: str
    counters: Counters
    is_first: bool


@dataclass
class PartitionWorker:
    """
    Runs partitions. `run` may be called from several threads at once.

    Args:
        spec: What to run.

    Attributes:
        open: By partition index: the counts of the rows finished so far in each partition that is not committed yet.
    """

    spec: WorkerSpec
    open: dict[int, Counters] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._output = OutputFolder(self.spec.output_url, self.spec.output_format)
        self._schema = pa.schema([*self.spec.input_schema, *self.spec.stage.fields])
        self._cursors = ParquetCursors(ROWS_PER_CHUNK)
        collect_rarely(self)
        self._is_stopped = False
        self._failure: BaseException | None = None
        self._stopping = threading.Lock()

    @property
    def num_in_flight(self) -> int:
        """Requests in flight now."""
        return self.spec.stage.num_in_flight

    @property
    def trouble(self) -> str | None:
        """Why rows are being put off; None where all is well."""
        return self.spec.stage.trouble

    def run(self, partition: Partition) -> PartitionReport:
        """
        Read, ask, write and commit `partition`, and return when its file is visible and durable.

        What one partition raises ends the run, so the worker stops at once and the others raise the same.

        Raises:
            InputError: The input cannot be read.
            FatalError: The server refuses every request.
            RunError: The journal or the output cannot be written.
            concurrent.futures.CancelledError: `stop` was called.
        """
        try:
            return self._run(partition)
        except BaseException as error:
            first = self._fail(error)
            if first is error:
                raise
            raise first

    def stop(self) -> None:
        """Abandon what runs, at once: each `run`, now and later, raises `CancelledError`. Journaled answers stay."""
        with self._stopping:
            self._is_stopped = True
        self._close()

    def _fail(self, error: BaseException) -> BaseException:
        """Stop because of `error`, and return it, or the earlier one that it only follows from."""
        with self._stopping:
            if not self._is_stopped:
                self._is_stopped, self._failure = True, error
        self._close()
        return self._failure if self._failure and isinstance(error, concurrent.futures.CancelledError) else error

    def _close(self) -> None:
        self.spec.stage.close()
        self._cursors.close()
        collect_as_usual(self)

    def _run(self, partition: Partition) -> PartitionReport:
        name = self._output.name_of(partition)
        is_retry = self.spec.retry_kinds is not None
        # Of a row that failed, an answer that was kept is one that could not be used.
        with writing_to(self._output.url):
            journal = Journal(
                self._output.journal_folder(name),
                self._output.raw_folder(name),
                reads_kept=not is_retry,
                flush_interval_s=self.spec.flush_interval_s,
            )
        self.open[partition.index] = Counters()
        reach("read.before")
        try:
            with self._output.writer(self._schema, self.spec.job_id) as writer:
                if is_retry:
                    counters = self._refill(writer, partition, name, journal)
                    writer.replace(name, counters)
                    is_first = True
                else:
                    counters = self._fill(writer, partition, journal)
                    is_first = writer.commit(name, counters)
        except BaseException:
            with suppress(OSError):
                journal.close()
            raise
        finally:
            del self.open[partition.index]
        with writing_to(self._output.url):
            journal.retire(keep=self.spec.keep_raw)
        return PartitionReport(partition.index, name, counters, is_first)

    def _fill(self, writer: PartitionWriter, partition: Partition, journal: Journal) -> Counters:
        """Write the partition's rows with their answers; return what they count."""
        counters = Counters()
        bad: list[BadInput] = []
        chunks = self._input_rows(partition, bad)
        for table, results in self._ask_ahead(((table, table) for table in chunks), partition, journal):
            for result in results:
                counters.count(result)
            reach("write.before")
            writer.write(self.spec.stage.add_columns(table, results).cast(self._schema))
        self._output.write_bad_input(self._output.name_of(partition), bad)
        counters.num_left_out = sum(record.num_rows for record in bad)
        return counters

    def _refill(self, writer: PartitionWriter, partition: Partition, name: str, journal: Journal) -> Counters:
        """Write the committed rows, the failed ones with what they come to now; return what the file counts then."""
        kinds = self.spec.retry_kinds or None
        error_column = f"{self.spec.stage.output_column}_error"
        counters = self._output.read_counters(name)
        chunks = self._committed_rows(partition, name)
        halves = ((table, failed_rows(table, error_column, kinds)) for table in chunks)
        for table, results in self._ask_ahead(halves, partition, journal):
            failed = failed_rows(table, error_column, kinds)
            counters.take_back(failed.column(error_column).to_pylist())
            for result in results:
                counters.count(result)
            asked = failed.select(self.spec.input_schema.names)
            answered = self.spec.stage.add_columns(asked, results).cast(self._schema)
            reach("write.before")
            writer.write(put_back(table, answered, error_column, kinds))
        return counters

    def _input_rows(self, partition: Partition, bad: list[BadInput]) -> Iterator[pa.Table]:
        """Yield the partition's rows; what of it cannot be read is added to `bad`, if the job allows that."""
        on_bad = bad.append if self.spec.skips_bad_input else None
        return read_partition(
            partition, self.spec.input_schema, rows_per_chunk=ROWS_PER_CHUNK, on_bad=on_bad, cursors=self._cursors
        )

    def _committed_rows(self, partition: Partition, name: str) -> Iterator[pa.Table]:
        """Yield the rows of the committed file; of a JSONL file, which has no types, the input columns as read anew."""
        if self._output.format == "parquet":
            yield from self._output.read(name, self._schema, rows_per_chunk=ROWS_PER_CHUNK)
            return
        rows = self._output.rows(name)
        for table in self._input_rows(partition, []):
            answered = to_columns(list(itertools.islice(rows, table.num_rows)), self.spec.stage.fields)
            yield pa.table([*table.columns, *answered], schema=self._schema)

    def _ask_ahead(
        self, chunks: Iterable[tuple[pa.Table, pa.Table]], partition: Partition, journal: Journal
    ) -> Iterator[tuple[pa.Table, list[RowResult]]]:
        """
        Yield chunks in order as they are finished, while the rows of later ones are asked.

        Args:
            chunks: What to yield, and the rows of it to ask.
            partition: Whose they are.
            journal: Where its answers are.
        """
        stage = self.spec.stage
        window: deque[tuple[pa.Table, concurrent.futures.Future[list[RowResult]]]] = deque()
        num_open = 0
        try:
            for table, asked in chunks:
                rows = stage.rows_of(asked)
                with self._stopping:  # a stage that was closed would open again
                    if self._is_stopped:
                        raise concurrent.futures.CancelledError
                    future = stage.submit(rows, store=journal, on_done=self.open[partition.index].count)
                window.append((table, future))
                num_open += table.num_rows
                while window[0][1].done() or num_open >= MAX_OPEN_ROWS:
                    done, future = window.popleft()
                    yield done, future.result()
                    num_open -= done.num_rows
                    if not window:
                        break
            while window:
                done, future = window.popleft()
                yield done, future.result()
        finally:
            for _, future in window:
                future.cancel()
