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
from typing import Any

import pyarrow as pa

from nemo_llm_stage.core import Counters, Origin, Outcome
from nemo_llm_stage.dataset.arrow_types import conform
from nemo_llm_stage.dataset.bad_input import BadInput
from nemo_llm_stage.dataset.cursor import ParquetCursors
from nemo_llm_stage.dataset.failpoints import reach
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.journal import Journal
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.dataset.storage import writing_to
from nemo_llm_stage.dataset.writer import PartitionWriter
from nemo_llm_stage.stage.extend import Extended
from nemo_llm_stage.stage.runtime import OnDone
from nemo_llm_stage.worker.failed_rows import Asked, FailedRows, put_back, to_columns
from nemo_llm_stage.worker.garbage import collect_as_usual, collect_rarely, give_memory_back
from nemo_llm_stage.worker.spec import WorkerSpec
from nemo_llm_stage.worker.task import PartitionReport, PieceReport, Report, Task, settle

ROWS_PER_CHUNK = 1024
"""Rows read, asked and written at once: what a partition holds in memory does not depend on its size."""

MAX_ROWS_AHEAD = 2 * ROWS_PER_CHUNK
"""Rows of all partitions read and not yet started, beyond which no more are read; or four for each permit."""

POLL_S = 0.02
"""How often a partition that is far ahead looks whether it is still."""

MAX_OPEN_ROWS = 64 * ROWS_PER_CHUNK
"""Rows of one partition read and not yet written: a slow row holds up writing, not asking, this far."""


@dataclass
class PartitionWorker:
    """
    Runs partitions and pieces of them. `run` and `do` may be called from several threads at once.

    Args:
        spec: What to run.

    Attributes:
        open: The counts of the rows finished so far in each partition, and in each piece, that is not done yet.
    """

    spec: WorkerSpec
    open: dict[Partition, Counters] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._output = OutputFolder(self.spec.output_url, self.spec.settings.output_format)
        columns = [*self.spec.input_schema, *self.spec.stage.fields]
        self._schema = pa.schema(columns, metadata=self.spec.input_schema.metadata)
        self._cursors = ParquetCursors(ROWS_PER_CHUNK)
        self._num_submitted = 0
        self._unread: dict[Partition, int] = {}
        self._count: dict[Partition, OnDone] = {}
        collect_rarely(self)
        self._is_stopped = False
        self._failure: BaseException | None = None
        self._stopping = threading.Lock()

    @property
    def num_in_flight(self) -> int:
        """Requests in flight now."""
        return self.spec.stage.num_in_flight

    @property
    def num_waiting(self) -> int:
        """Rows that were given to this worker and are not started yet; estimated where they were not counted."""
        unread = sum(max(0, num) for num in list(self._unread.values()))
        return unread + self._num_submitted - self.spec.stage.num_started

    @property
    def trouble(self) -> str | None:
        """Why rows are being put off; None where all is well."""
        return self.spec.stage.trouble

    def run(self, partition: Partition) -> PartitionReport:
        """
        Read, ask, write and commit `partition`, and return when its file is visible and durable.

        Raises:
            Exception: As `do`.
        """
        report = self.do(Task(partition, partition.num_rows or 0))
        assert isinstance(report, PartitionReport)
        return report

    def do(self, task: Task) -> Report:
        """
        Run a partition to its committed file, or a piece of one until its answers are durable.

        What one task raises ends the run, so the worker stops at once and the others raise the same.

        Raises:
            InputError: The input cannot be read.
            FatalError: The server refuses every request.
            RunError: The journal or the output cannot be written.
            concurrent.futures.CancelledError: `stop` was called.
        """
        counters = Counters()
        if task.pieces is None:
            self.open[task.partition] = counters
            self._count[task.partition] = counters.count
        else:  # its rows were counted before, but for those that failed and are asked again
            self._count[task.partition] = lambda outcome: counters.count(
                {name: result for name, result in outcome.items() if result.origin is not Origin.JOURNAL}
            )
        self._unread[task.partition] = task.num_rows
        try:
            return self._answer(task, counters) if task.is_piece else self._run(task, counters)
        except BaseException as error:
            first = self._fail(error)
            if first is error:
                raise
            raise first
        finally:
            self.open.pop(task.partition, None)
            self._unread.pop(task.partition, None)
            self._count.pop(task.partition, None)

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

    def _answer(self, task: Task, counters: Counters) -> PieceReport:
        """Ask the rows of a piece, and leave their answers in a journal of the partition's."""
        name = self._output.name_of(task.partition)
        journal = self._open_journal(name, ignored=task.attempts)
        reach("piece.before")
        try:
            chunks = (Asked(table, table) for table in self._input_rows(task.partition, []))
            for _ in self._ask_ahead(chunks, task.partition, journal):
                pass
        finally:
            journal.close()
        reach("piece.after")
        return PieceReport(task.partition, counters, journal.attempt)

    def _open_journal(self, name: str, **options: Any) -> Journal:
        folder, kept = self._output.journal_folder(name), self._output.raw_folder(name)
        interval_s = self.spec.settings.flush_interval
        reads_kept = self.spec.retry_kinds is None  # a kept answer of a row that failed is one that could not be used
        with writing_to(self._output.url):
            return Journal(folder, kept, reads_kept=reads_kept, flush_interval_s=interval_s, **options)

    def _run(self, task: Task, asked: Counters) -> PartitionReport:
        partition = task.partition
        name = self._output.name_of(partition)
        if self.spec.retry_kinds is None and self._output.has(name, self.spec.job_id):
            # The worker that committed it died before it reported so.
            return PartitionReport(partition.index, name, self._output.read_counters(name), is_first=False)
        journal = self._open_journal(name, expected=task.attempts)
        reach("read.before")
        try:
            with self._output.writer(self._schema, self.spec.job_id) as writer:
                if self.spec.retry_kinds is not None:
                    counters = self._refill(writer, partition, name, journal)
                    writer.replace(name, counters)
                    is_first = True
                else:
                    counters = self._fill(writer, partition, journal)
                    if task.pieces is not None:
                        settle(counters, task.pieces, asked)
                    is_first = writer.commit(name, counters)
        except BaseException:
            with suppress(OSError):
                journal.close()
            raise
        with writing_to(self._output.url):
            journal.retire(keep=self.spec.settings.keep_raw)
        give_memory_back()
        return PartitionReport(partition.index, name, counters, is_first)

    def _fill(self, writer: PartitionWriter, partition: Partition, journal: Journal) -> Counters:
        """Write the partition's rows with their answers; return what they count."""
        counters = Counters()
        bad: list[BadInput] = []
        chunks = (Asked(table, table) for table in self._input_rows(partition, bad))
        for asked, outcomes in self._ask_ahead(chunks, partition, journal):
            extended = self._extend(asked.table, outcomes, counters)
            reach("write.before")
            writer.write(extended.table)
        self._output.write_bad_input(self._output.name_of(partition), bad)
        counters.num_left_out = sum(record.num_rows for record in bad)
        return counters

    def _refill(self, writer: PartitionWriter, partition: Partition, name: str, journal: Journal) -> Counters:
        """Write the committed rows, the failed ones with what they come to now; return what the file counts then."""
        counters = self._output.read_counters(name)
        failures = FailedRows(self.spec.stage, self.spec.retry_kinds or None)
        chunks = (failures.of(table, self.spec.input_schema.names) for table in self._committed_rows(partition, name))
        for asked, outcomes in self._ask_ahead(chunks, partition, journal):
            for errors in asked.errors:
                counters.take_back(errors)
            extended = self._extend(asked.input, outcomes, counters)
            reach("write.before")
            writer.write(put_back(asked, extended, self.spec.stage.columns))
        return counters

    def _extend(self, table: pa.Table, outcomes: list[Outcome], counters: Counters) -> Extended:
        """Return the rows with their columns, and count what they come to."""
        extended = self.spec.stage.extend(table, outcomes)
        for index, outcome in enumerate(outcomes):
            counters.count(outcome, is_dropped=index in extended.dropped)
        return extended._replace(table=conform(extended.table, self._schema))

    def _is_far_ahead(self) -> bool:
        num_ready = self._num_submitted - self.spec.stage.num_started
        return num_ready > max(MAX_ROWS_AHEAD, 4 * self.spec.num_permits)

    def _input_rows(self, partition: Partition, bad: list[BadInput]) -> Iterator[pa.Table]:
        """Yield the partition's rows; what of it cannot be read is added to `bad`, if the job allows that."""
        on_bad = bad.append if self.spec.settings.on_bad_input == "skip" else None
        return read_partition(
            partition, self.spec.input_schema, rows_per_chunk=ROWS_PER_CHUNK, on_bad=on_bad, cursors=self._cursors
        )

    def _committed_rows(self, partition: Partition, name: str) -> Iterator[pa.Table]:
        """Yield the committed rows; those of a JSONL file, which has no types, with the input's as read anew."""
        if self._output.format == "parquet":
            yield from self._output.read(name, self._schema, rows_per_chunk=ROWS_PER_CHUNK)
            return
        rows = self._output.rows(name)
        if self.spec.stage.changes_num_rows:  # nothing tells which row of the input a row of the output is of
            while chunk := list(itertools.islice(rows, ROWS_PER_CHUNK)):
                yield pa.table(to_columns(chunk, self._schema), schema=self._schema)
            return
        for table in self._input_rows(partition, []):
            answered = to_columns(list(itertools.islice(rows, table.num_rows)), self.spec.stage.fields)
            yield pa.table([*table.columns, *answered], schema=self._schema)

    def _ask_ahead(
        self, chunks: Iterable[Asked], partition: Partition, journal: Journal
    ) -> Iterator[tuple[Asked, list[Outcome]]]:
        """
        Yield chunks in order with their outcomes as they are finished, while the rows of later ones are asked.

        Args:
            chunks: What to ask.
            partition: Whose rows they are.
            journal: Where its answers are.
        """
        stage = self.spec.stage
        window: deque[tuple[Asked, concurrent.futures.Future[list[Outcome]]]] = deque()
        num_open = 0
        try:
            for chunk in chunks:
                rows = stage.rows_of(chunk.input)
                with self._stopping:  # a stage that was closed would open again
                    if self._is_stopped:
                        raise concurrent.futures.CancelledError
                    future = stage.submit(rows, known=chunk.known, store=journal, on_done=self._count[partition])
                    self._num_submitted += len(rows)
                    self._unread[partition] = self._unread.get(partition, 0) - chunk.table.num_rows
                window.append((chunk, future))
                num_open += chunk.table.num_rows
                while window and (window[0][1].done() or num_open >= MAX_OPEN_ROWS or self._is_far_ahead()):
                    done, future = window[0]
                    if num_open < MAX_OPEN_ROWS and not concurrent.futures.wait([future], POLL_S).done:
                        continue
                    window.popleft()
                    yield done, future.result()
                    num_open -= done.table.num_rows
            self._unread.pop(partition, None)
            while window:
                done, future = window.popleft()
                yield done, future.result()
        finally:
            for _, future in window:
                future.cancel()
