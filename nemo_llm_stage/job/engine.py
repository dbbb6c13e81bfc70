"""
Engines run a job's partitions; the one here does so in this process.

Knows workers and partitions; the Ray engine, with the same interface, lives in the cluster room.
"""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nemo_llm_stage.core import Counters, sum_counters
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.job.worker import PartitionReport, PartitionWorker, WorkerSpec

TICK_S = 0.5
"""How often an engine tells its monitor how things stand."""


@dataclass(frozen=True)
class Status:
    """
    How a run stands.

    Attributes:
        open: Counts of the rows finished in partitions that are not committed yet.
        num_in_flight: Requests in flight, over all workers.
        trouble: Why rows are being put off, as ``kind: message``; None where all is well.
    """

    open: Counters = field(default_factory=Counters)
    num_in_flight: int = 0
    trouble: str | None = None


Monitor = Callable[[Status], None]
"""Called about twice a second with how the run stands; may raise to stop it."""


class Engine(Protocol):
    """Runs partitions through workers."""

    def run(self, spec: WorkerSpec, partitions: Sequence[Partition], monitor: Monitor) -> Iterator[PartitionReport]:
        """
        Run `partitions` and yield a report for each as it is committed, in any order.

        Raises:
            Exception: What a worker or `monitor` raised; the other partitions are abandoned.
        """


class LocalEngine:
    """One worker in this process, several partitions at once; for small jobs and for tests."""

    def run(self, spec: WorkerSpec, partitions: Sequence[Partition], monitor: Monitor) -> Iterator[PartitionReport]:
        """See `Engine.run`."""
        worker = PartitionWorker(spec)
        todo = iter(partitions)
        num_at_once = spec.num_partitions_at_once
        with concurrent.futures.ThreadPoolExecutor(num_at_once, "partition") as pool:
            running = {pool.submit(worker.run, partition) for partition in itertools.islice(todo, num_at_once)}
            try:
                while running:
                    done, running = concurrent.futures.wait(
                        running, timeout=TICK_S, return_when=concurrent.futures.FIRST_COMPLETED
                    )
                    for future in done:
                        report = future.result()
                        running.update(pool.submit(worker.run, partition) for partition in itertools.islice(todo, 1))
                        yield report
                    monitor(Status(sum_counters(worker.open.values()), worker.num_in_flight, worker.trouble))
            finally:
                worker.stop()
