"""
The in-process engine: workers on threads of this process, without Ray.

For small jobs, for tests, and to see what Ray adds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.worker.drive import drive
from nemo_llm_stage.worker.engine import Monitor
from nemo_llm_stage.worker.handouts import handout_of
from nemo_llm_stage.worker.host import WorkerHost, WorkerStatus
from nemo_llm_stage.worker.orders import NO_CONTROL, NO_ORDERS, Control, Orders
from nemo_llm_stage.worker.spec import WorkerSpec
from nemo_llm_stage.worker.task import PartitionReport, Task


@dataclass(frozen=True)
class LocalEngine:
    """
    Runs partitions in this process.

    Args:
        num_workers: Each has a client, a limit and an event loop of its own. One is as fast as many, because all
            share Python's lock.
    """

    num_workers: int = 1

    def run(
        self, spec: WorkerSpec, partitions: Sequence[Partition], monitor: Monitor, control: Control = NO_CONTROL
    ) -> Iterator[PartitionReport]:
        """See `nemo_llm_stage.worker.engine.Engine.run`."""
        handout = handout_of(spec, partitions, self.num_workers)
        specs = [spec, *(_copy(spec) for _ in range(1, handout.num_workers))]
        slots = [_Slot(spec.at(index, len(specs))) for index, spec in enumerate(specs)]
        try:
            yield from drive(slots, handout, monitor, control)
        finally:
            for slot in slots:
                slot.stop()


def _copy(spec: WorkerSpec) -> WorkerSpec:
    try:
        return replace(spec, stage=copy.deepcopy(spec.stage))
    except Exception as error:
        raise ConfigError(
            f"several actors need a stage that can be copied, and this one cannot: {error}. "
            "Use one actor, or make what cannot be copied in the client's setup()."
        ) from error


class _Slot:
    """See `nemo_llm_stage.worker.drive.WorkerSlot`; the worker lives as long as this process."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._host = WorkerHost(spec)
        self._thread = ThreadPoolExecutor(1, "worker")

    def start(self) -> Future[WorkerStatus]:
        return self.collect((), 0, 0.0)

    def collect(
        self, tasks: Sequence[Task], num_rows_ahead: int, timeout_s: float, orders: Orders = NO_ORDERS
    ) -> Future[WorkerStatus]:
        return self._thread.submit(self._host.collect, tasks, num_rows_ahead, timeout_s, orders)

    def stop(self) -> None:
        self._host.stop()
        self._thread.shutdown()
