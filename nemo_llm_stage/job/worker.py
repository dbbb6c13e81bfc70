"""
The worker: takes a partition to a committed file.

One stage, so one client, one limit and one event loop, for all partitions it runs at once; each `run` call blocks the
thread it is made from, which also does the partition's reading and writing. Knows no Ray.
"""

from __future__ import annotations

import concurrent.futures
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa

from nemo_llm_stage.core import Counters, RowResult
from nemo_llm_stage.dataset.journal import Journal
from nemo_llm_stage.dataset.output import OutputFolder, PartitionWriter
from nemo_llm_stage.dataset.plan import Partition, read_partition
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
    """

    stage: LLMStage
    output_url: str
    output_format: str
    input_schema: pa.Schema
    rows_per_partition: int

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

        Raises:
            InputError: The input cannot be read.
            FatalError: The server refuses every request.
            RunError: The journal or the output cannot be written.
            concurrent.futures.CancelledError: `stop` was called.
        """
        name = self._output.name_of(partition)
        journal = Journal(self._output.journals, name.partition(".")[0])
        counters = Counters()
        self.open[partition.index] = Counters()
        try:
            with self._output.writer(self._schema) as writer:
                self._fill(writer, partition, journal, counters)
                is_first = writer.commit(name, counters)
        except BaseException:
            with suppress(OSError):
                journal.close()
            raise
        finally:
            del self.open[partition.index]
        journal.remove()
        return PartitionReport(partition.index, name, counters, is_first)

    def stop(self) -> None:
        """Abandon what runs, at once: each `run` raises `CancelledError`. Journaled answers stay."""
        self.spec.stage.close()

    def _fill(self, writer: PartitionWriter, partition: Partition, journal: Journal, counters: Counters) -> None:
        for table, results in self._ask_ahead(partition, journal):
            for result in results:
                counters.count(result)
            writer.write(self.spec.stage.add_columns(table, results).cast(self._schema))

    def _ask_ahead(self, partition: Partition, journal: Journal) -> Iterator[tuple[pa.Table, list[RowResult]]]:
        """Yield the partition's chunks in order as they are finished, while the rows of later ones are asked."""
        stage = self.spec.stage
        window: deque[tuple[pa.Table, concurrent.futures.Future[list[RowResult]]]] = deque()
        num_open = 0
        try:
            for table in read_partition(partition, self.spec.input_schema, rows_per_chunk=ROWS_PER_CHUNK):
                rows = stage.rows_of(table)
                window.append((table, stage.submit(rows, store=journal, on_done=self.open[partition.index].count)))
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
