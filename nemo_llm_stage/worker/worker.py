"""
The worker: takes a partition to a committed file.

It holds one stage, so one set of clients, limits and one event loop, for all partitions that it runs at once. A task
blocks the thread that runs it, which also does the partition's reading and writing. Knows no Ray.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any

import pyarrow as pa

from nemo_llm_stage.client.endpoints.share import ALONE
from nemo_llm_stage.client.throttle import OPEN, Spending
from nemo_llm_stage.core import Outcome
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.arrow_types import conform
from nemo_llm_stage.dataset.bad_input import BadInput
from nemo_llm_stage.dataset.failpoints import reach
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.journal import Journal
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.writer import PartitionWriter
from nemo_llm_stage.dataset.writing import writing_to
from nemo_llm_stage.errors import RunError
from nemo_llm_stage.stage.extend import Extended
from nemo_llm_stage.worker.backlog import Backlog
from nemo_llm_stage.worker.chunk import ROWS_PER_CHUNK, Chunk
from nemo_llm_stage.worker.drain import Drain
from nemo_llm_stage.worker.failed_rows import FailedRows, merge_retried
from nemo_llm_stage.worker.garbage import collect_as_usual, collect_rarely, give_memory_back
from nemo_llm_stage.worker.lost_answers import open_stream
from nemo_llm_stage.worker.open_task import OpenTask
from nemo_llm_stage.worker.open_tasks import OpenTasks
from nemo_llm_stage.worker.orders import Orders
from nemo_llm_stage.worker.samples import Samples
from nemo_llm_stage.worker.source import RowSource
from nemo_llm_stage.worker.spec import WorkerSpec
from nemo_llm_stage.worker.task import OverdueRequest, PartitionReport, PieceReport, Report, Task, settle
from nemo_llm_stage.worker.wide import widened
from nemo_llm_stage.worker.window import run_ahead

MAX_QUEUED_ROWS = ROWS_PER_CHUNK
"""Rows read and not started, over all partitions, beyond which no more are read; or four for each request in flight."""


class PartitionWorker:
    """
    Runs partitions and pieces of them. `run_task` may be called from several threads at once.

    Args:
        spec: What to run.

    Attributes:
        backlog: The rows that it was given and has not started.
        drain: Ends it in order.
        samples: A few of the rows that it finishes.
        tasks: That it runs at the moment.
        overdue: Requests in flight for long, if the last orders asked for them.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        spec.stage.take_place(spec.place)
        self._max_in_flight = spec.max_concurrent_requests
        self.backlog = Backlog(max(MAX_QUEUED_ROWS, 4 * spec.max_concurrent_requests))
        self._output = OutputFolder(spec.output_url, spec.settings.output_format, spec.layout)
        self._stream = open_stream(self._output.state, spec.place.index, spec.settings)
        self._source = RowSource(spec, self._output)
        self._schema = self._source.output_schema
        self.tasks = OpenTasks(can_share=spec.retry_kinds is None)
        self._is_stopped = False
        self._failure: BaseException | None = None
        self._stopping = threading.Lock()
        self.drain = Drain(spec.stage)
        self.samples = Samples()
        self.overdue: tuple[OverdueRequest, ...] = ()
        collect_rarely(self)

    @property
    def spending(self) -> Spending:
        """What its requests took so far."""
        return self.spec.stage.spending

    def follow(self, orders: Orders) -> None:
        """Run as `orders` say from now on. A worker that drains does not go back to work."""
        self.drain.follow(orders)
        self.overdue = ()
        if orders.servers is not None:
            self.spec.stage.tell_servers(orders.servers)
        self.tasks.abandon(orders.abandoned)
        runtime = self.spec.stage.runtime
        if runtime is None or orders.is_draining:
            return
        with suppress(RunError):  # the stage has just ended
            self.tasks.drop(runtime, orders.dropped)
            if orders.gives_back:
                for task in self.tasks.cut():
                    self.backlog.finish_reading(task.key)
                runtime.take_back()
            if orders.overdue_s:
                self.overdue = self.tasks.overdue(runtime, orders.overdue_s)

    def run_partition(self, partition: Partition) -> PartitionReport:
        """Run a whole partition; returns and raises as `run_task`."""
        report = self.run_task(Task(partition, partition.num_rows or 0))
        assert isinstance(report, PartitionReport)
        return report

    def run_task(self, task: Task) -> Report:
        """
        Run a partition until its file is visible and durable, or a piece of one until its answers are durable.

        An error of one task ends the run: the worker stops, and the other tasks raise the same error.

        Raises:
            InputError: The input cannot be read.
            FatalError: The server refuses every request.
            RunError: The journal or the output cannot be written, or another job has taken over the folder.
            concurrent.futures.CancelledError: `stop` was called, or the worker was drained before the task was whole.
        """
        open_task = self.tasks.open(task)
        self.backlog.add(task.key, task.num_rows)
        try:
            open_task.check()
            return self._run_piece(open_task) if task.is_piece else self._run_whole(open_task)
        except BaseException as error:
            if isinstance(error, CancelledError) and (self.drain.is_over or open_task.is_abandoned):
                self.tasks.close(open_task, keeps=not open_task.is_abandoned)
                raise
            cause = self._fail(error)
            if cause is error:
                raise
            raise cause
        finally:
            self.tasks.close(open_task)
            self.backlog.finish_reading(task.key)

    def fit_to(self, max_in_flight: int) -> None:
        """Read as far ahead as so many requests in flight need."""
        if self._max_in_flight != max_in_flight:
            self._max_in_flight = max_in_flight
            self.backlog.resize(max(MAX_QUEUED_ROWS, 4 * max_in_flight))

    def stop(self) -> None:
        """Abandon all tasks: each `run_task`, now and later, raises `CancelledError`. Journaled answers stay."""
        with self._stopping:
            self._is_stopped = True
        self.drain.end()
        self._close()

    def _fail(self, error: BaseException) -> BaseException:
        """Stop because of `error`, and return the root cause: `error` itself, or the error that stopped the worker."""
        with self._stopping:
            if not self._is_stopped:
                self._is_stopped, self._failure = True, error
        self._close()
        return self._failure if self._failure and isinstance(error, CancelledError) else error

    def _close(self) -> None:
        self.spec.stage.close()
        self.spec.stage.throttle(OPEN)  # whoever uses the stage next is not held back, and asks all servers
        self.spec.stage.take_place(ALONE)
        self._source.close()
        collect_as_usual(self)

    def _run_piece(self, open_task: OpenTask) -> PieceReport:
        """Run the rows of a piece, and leave their answers in a journal of its partition."""
        task = open_task.task
        piece = task.partition
        journal = self._open_journal(self._output.name_of(piece), ignored=task.attempts, is_fresh=task.is_fresh)
        reach("piece.before")
        try:
            chunks = open_task.chunks(self._source.input_rows(piece, []))
            for _ in self._run_chunks(chunks, open_task, journal):
                pass
        finally:
            if open_task.is_half_a_second_send:  # these answers do not fit those in the other journal
                journal.retire(keep=False)
            journal.close()
        reach("piece.after")
        return open_task.piece_report(journal.attempt)

    def _run_whole(self, open_task: OpenTask) -> Report:
        """Run a partition to its committed file; or what is left of it once others have rows of it."""
        started_s, task = time.monotonic(), open_task.task
        partition, is_retry = task.partition, self.spec.retry_kinds is not None
        name = self._output.name_of(partition)
        if not (is_retry or task.is_fresh) and self._output.has(name, self.spec.job_id):
            # The worker that committed it died before it reported so.
            return PartitionReport(partition.index, name, self._output.read_counters(name), False, number=task.number)
        stream = self._stream
        journal = self._open_journal(name, expected=task.attempts, is_fresh=task.is_fresh, stream=stream)
        reach("read.before")
        try:
            with self._output.writer(self._schema, self.spec.job_id) as writer:
                if is_retry:
                    total, is_first = self._retry(writer, open_task, journal), True
                    writer.replace(name, total)
                else:
                    total = self._fill(writer, open_task, journal)
                    if open_task.has_shared:
                        journal.share()
                        return open_task.piece_report(journal.attempt)
                    is_first = writer.commit(name, total)
        except BaseException:
            with suppress(OSError):
                journal.close()
            raise
        with writing_to(self._output.url):
            journal.retire(keep=self.spec.settings.keep_raw)
        give_memory_back()
        seconds = time.monotonic() - started_s
        return PartitionReport(partition.index, name, total, is_first, seconds, task.number, writer.stat)

    def _fill(self, writer: PartitionWriter, open_task: OpenTask, journal: Journal) -> Counters:
        """Write the partition's rows with their answers, while all are here; return what the file counts."""
        total, task = Counters(), open_task.task
        bad: list[BadInput] = []
        tables = widened(self._source.input_rows(task.partition, bad), lambda: self.spec.stage.gains_from_order)
        chunks = open_task.chunks(tables)
        for chunk, outcomes in self._run_chunks(chunks, open_task, journal):
            if open_task.has_shared or not all(outcomes):  # another worker makes the file
                open_task.has_shared = True
                continue
            extended = self._extend(chunk.table, outcomes, total)
            reach("write.before")
            writer.write(extended.table)
        if open_task.has_shared:
            return total
        self._output.write_bad_input(self._output.name_of(task.partition), bad)
        total.num_left_out = sum(record.num_rows for record in bad)
        if task.pieces is not None:
            settle(total, task.pieces, open_task.counters)
        return total

    def _retry(self, writer: PartitionWriter, open_task: OpenTask, journal: Journal) -> Counters:
        """Write the committed rows, the retried ones with their new results; return what the file counts then."""
        task = open_task.task
        name = self._output.name_of(task.partition)
        total = self._output.read_counters(name)
        failures = FailedRows(self.spec.stage, self.spec.retry_kinds or None)
        tables = self._source.committed_rows(task.partition, name)
        chunks = (failures.select(table, self.spec.input_schema.names) for table in tables)
        for chunk, outcomes in self._run_chunks(chunks, open_task, journal):
            for errors in chunk.errors:
                total.take_back(errors)
            extended = self._extend(chunk.input, outcomes, total)
            reach("write.before")
            writer.write(merge_retried(chunk, extended, self.spec.stage.outputs))
        return total

    def _extend(self, table: pa.Table, outcomes: list[Outcome], counters: Counters) -> Extended:
        """Return the rows with the generated columns, and count their outcomes."""
        extended = self.spec.stage.extend(table, outcomes)
        for index, outcome in enumerate(outcomes):
            counters.count(outcome, is_dropped=index in extended.dropped)
        return extended._replace(table=conform(extended.table, self._schema))

    def _run_chunks(
        self, chunks: Iterable[Chunk], open_task: OpenTask, journal: Journal
    ) -> Iterator[tuple[Chunk, list[Outcome]]]:
        """Yield chunks of a task in order with their outcomes, which it counts as they come."""
        key, task = open_task.task.key, open_task.task

        def start(chunk: Chunk) -> Future[list[Outcome]]:
            rows = self.spec.stage.rows_of(chunk.input)
            with self._stopping:  # a stage that was closed would open again
                if self._is_stopped:
                    raise CancelledError
                self.backlog.queue(key, num_read=chunk.table.num_rows, num_submitted=len(rows))
                return self.spec.stage.submit(
                    rows,
                    known=[task.known] * len(rows) if task.known else chunk.known,
                    store=journal,
                    on_done=self.samples.watching(open_task.count),
                    on_start=self.backlog.start_row,
                    order=self.spec.settings.order,
                    hand=open_task.hand(),
                    avoids=task.avoids,
                )

        def submit(chunk: Chunk) -> Future[list[Outcome]]:
            future = self.drain.submit(lambda: start(chunk))
            open_task.watch(future)
            return future

        return run_ahead(chunks, submit, self.backlog, lambda: self.backlog.finish_reading(key))

    def _open_journal(self, name: str, **options: Any) -> Journal:
        folder, kept = self._output.journal_folder(name), self._output.raw_folder(name)
        interval_s = self.spec.settings.flush_interval
        reads_kept = self.spec.retry_kinds is None  # a kept answer of a failed row was of no use
        with writing_to(self._output.url):
            return Journal(folder, kept, reads_kept=reads_kept, flush_interval_s=interval_s, **options)
