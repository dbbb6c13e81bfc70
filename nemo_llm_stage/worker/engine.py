"""
Engines run a job's partitions: what they promise, and what they report meanwhile.

The in-process engine is in `in_process`; the Ray engine is in the cluster room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nemo_llm_stage.core import Counters
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.worker.orders import NO_CONTROL, Control
from nemo_llm_stage.worker.spec import WorkerSpec
from nemo_llm_stage.worker.task import PartitionReport

TICK_S = 0.5
"""Seconds between two calls of the monitor."""


@dataclass(frozen=True)
class Status:
    """
    How a run stands.

    Attributes:
        open: Counts of the rows finished in partitions that are not committed yet.
        num_in_flight: Requests in flight, over all workers.
        trouble: Why rows are waiting for a retry, as ``kind: message``; None if none are.
    """

    open: Counters = field(default_factory=Counters)
    num_in_flight: int = 0
    trouble: str | None = None


Monitor = Callable[[Status], None]
"""Called about twice a second with how the run stands; may raise to stop it."""


class Engine(Protocol):
    """Runs partitions through workers."""

    def run(
        self, spec: WorkerSpec, partitions: Sequence[Partition], monitor: Monitor, control: Control = NO_CONTROL
    ) -> Iterator[PartitionReport]:
        """
        Run `partitions` and yield a report for each as it is committed, in any order.

        Args:
            spec: What makes the workers.
            partitions: To run.
            monitor: Told how the run stands.
            control: Gives the workers orders.

        Raises:
            Exception: What a worker or `monitor` raised; the other partitions are abandoned.
        """
