"""
Engines run a job's partitions: what they promise, and what they report meanwhile.

The in-process engine is in `in_process`; the Ray engine is in the cluster room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.stage.status import StageStatus
from nemo_llm_stage.worker.moves import NO_MOVES, Moves
from nemo_llm_stage.worker.orders import NO_CONTROL, Control
from nemo_llm_stage.worker.spec import WorkerSpec
from nemo_llm_stage.worker.task import PartitionReport

TICK_S = 0.5
"""Seconds between two calls of the monitor."""

DRAIN_TICK_S = 0.1
"""Likewise while the workers drain."""

Phase = Literal["starting", "running", "draining", "paused"]


@dataclass(frozen=True)
class RunStatus:
    """
    How a run stands, over all workers.

    Attributes:
        open: Counts of the rows finished in partitions that are not committed yet.
        stage: The workers' stages together.
        phase: What the run does.
        waits_for: While it starts, what it waits for, e.g. ``Ray``.
        num_workers: Workers that the run wants.
        num_workers_up: Workers that have reported.
        moves: Rows that went from one worker to others.
    """

    open: Counters = field(default_factory=Counters)
    stage: StageStatus = field(default_factory=StageStatus)
    phase: Phase = "running"
    waits_for: str | None = None
    num_workers: int = 1
    num_workers_up: int = 1
    moves: Moves = NO_MOVES

    @property
    def num_in_flight(self) -> int:
        """Requests in flight."""
        return self.stage.num_in_flight

    @property
    def trouble(self) -> str | None:
        """Why rows are waiting for a retry, as ``kind: message``; None if none are."""
        return None if self.stage.outage is None else self.stage.outage.error


Monitor = Callable[[RunStatus], None]
"""Called about twice a second with how the run stands; may raise to stop it."""


class Engine(Protocol):
    """Runs partitions through workers."""

    def run(
        self, spec: WorkerSpec, partitions: Sequence[Partition], monitor: Monitor, control: Control = NO_CONTROL
    ) -> Iterator[PartitionReport]:
        """
        Run `partitions` and yield a report for each as it is committed, in any order.

        If `control` orders to drain, it ends before all are committed.

        Args:
            spec: What makes the workers.
            partitions: To run.
            monitor: Told how the run stands.
            control: Gives the workers orders.

        Raises:
            Exception: What a worker or `monitor` raised; the other partitions are abandoned.
        """
