"""
The loop of a run: assign tasks to workers, collect their reports, assign the tasks of dead workers again.

The same loop drives workers in this process and in others. Knows no Ray.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Protocol

from nemo_llm_stage.client.endpoint_status import merge_endpoints
from nemo_llm_stage.client.endpoints.share import WorkerPlace
from nemo_llm_stage.counters import sum_counters
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.errors import RunError
from nemo_llm_stage.stage.status import StageStatus
from nemo_llm_stage.worker.dispatch import Handout
from nemo_llm_stage.worker.engine import DRAIN_TICK_S, TICK_S, Monitor, RunStatus
from nemo_llm_stage.worker.host import Failure, WorkerStatus
from nemo_llm_stage.worker.orders import NO_CONTROL, NO_ORDERS, Control, Orders
from nemo_llm_stage.worker.spec import WorkerSpec
from nemo_llm_stage.worker.task import PartitionReport, Task

logger = logging.getLogger(__name__)

MAX_DEATHS = 30
"""Deaths of one worker in a row, without a finished row in between, after which the run is given up."""


class WorkerLostError(Exception):
    """A worker is dead or cannot be reached."""


class WorkerSlot(Protocol):
    """The place of one worker in a run. When the worker dies, a new one takes its place."""

    def start(self) -> Future[WorkerStatus]:
        """Start a worker in place of the one before, and return its first status."""

    def collect(
        self, tasks: Sequence[Task], num_rows_ahead: int, timeout_s: float, orders: Orders = NO_ORDERS
    ) -> Future[WorkerStatus]:
        """
        Call the worker's `WorkerHost.collect`.

        Raises:
            WorkerLostError: From the future.
        """

    def stop(self) -> None:
        """End the worker; return when it has abandoned its tasks."""


def handout_of(spec: WorkerSpec, partitions: Sequence[Partition], num_workers: int) -> Handout:
    """Return a handout of `partitions` to at most `num_workers`: fewer if there are not enough rows for all."""
    num_rows = len(partitions) * spec.rows_per_partition
    limit = spec.stage.total_limit(WorkerPlace(0, num_workers))
    num_workers = min(num_workers, max(len(partitions), num_rows // limit))
    return Handout(
        partitions,
        num_workers=num_workers,
        max_concurrent_requests=spec.stage.total_limit(WorkerPlace(0, num_workers)),
        rows_per_partition=spec.rows_per_partition,
        can_cut=spec.retry_kinds is None,
    )


def drive(
    slots: Sequence[WorkerSlot], handout: Handout, monitor: Monitor, control: Control = NO_CONTROL
) -> Iterator[PartitionReport]:
    """
    Run the partitions of `handout`, and yield a report for each as it is committed, in any order.

    Ends before that once the workers have drained, if `control` orders it.

    Args:
        slots: The places of the workers.
        handout: What they run.
        monitor: Told how the run stands.
        control: Gives the workers orders.

    Raises:
        Exception: What a worker or `monitor` raised.
        RunError: A worker died again and again.
    """
    supervisors = [_Supervisor(str(number), slot, control) for number, slot in enumerate(slots)]
    for supervisor in supervisors:
        supervisor.start()
    next_tick = time.monotonic() + TICK_S
    while not handout.is_over and not (control.is_draining and all(map(_is_drained, supervisors))):
        calls = {supervisor.call: supervisor for supervisor in supervisors}
        done, _ = wait(calls, timeout=max(0.0, next_tick - time.monotonic()), return_when=FIRST_COMPLETED)
        for call in done:
            yield from calls[call].handle_status(handout)
        if time.monotonic() >= next_tick:
            monitor(_total(supervisors, handout))
            next_tick = time.monotonic() + _tick_s(control)
    monitor(_total(supervisors, handout))


def _tick_s(control: Control) -> float:
    return DRAIN_TICK_S if control.is_draining else TICK_S


class _Supervisor:
    """
    Watches one slot: keeps the worker's last status and the pending call to it.

    `has_tasks` says whether the worker had tasks, or was given some, by its last status.
    """

    call: Future[WorkerStatus]

    def __init__(self, name: str, slot: WorkerSlot, control: Control) -> None:
        self.status = WorkerStatus()
        self.is_up = False
        self.has_tasks = False
        self._name = name
        self._slot = slot
        self._control = control
        self._num_deaths = 0

    def start(self) -> None:
        # The worker gets its first task when it is up: before, it may wait for room in the cluster.
        self.status = WorkerStatus()
        self.is_up = self.has_tasks = False
        self.call = self._slot.start()

    def handle_status(self, handout: Handout) -> Iterator[PartitionReport]:
        """Take the worker's new status, assign more tasks to it, and yield the partitions that it has committed."""
        try:
            self.status = self.call.result()
        except WorkerLostError as error:
            self._handle_loss(handout, error)
            return
        self.is_up = True
        reports = self.status.reports
        if reports or self.status.open.num_rows:
            self._num_deaths = 0
        for report in reports:
            if isinstance(report, Failure):
                raise report.to_error()
            handout.finish(self._name, report)
        orders = self._control.orders_of(self._name, self.status.need)
        tasks = [] if orders.is_draining else self._take(handout)
        self.has_tasks = bool(tasks) or self.status.num_open > 0
        num_rows_ahead = 0 if orders.is_draining else handout.num_rows_ahead
        self.call = self._slot.collect(tasks, num_rows_ahead, _tick_s(self._control), orders)
        yield from (report for report in reports if isinstance(report, PartitionReport))

    def _take(self, handout: Handout) -> list[Task]:
        handout.follow(self.status.stage.max_in_flight)
        return handout.take(self._name, num_waiting=self.status.num_waiting, num_open=self.status.num_open)

    def _handle_loss(self, handout: Handout, error: WorkerLostError) -> None:
        self._num_deaths += 1
        logger.debug("worker %s is lost for the %d. time: %s", self._name, self._num_deaths, error)
        if self._control.is_draining:
            self.has_tasks = False
            self.call = Future()  # nobody takes its place
            return
        if self._num_deaths == MAX_DEATHS:
            raise RunError(
                f"a worker died {MAX_DEATHS} times in a row before it had finished a row: {error} See Ray's logs."
            ) from error
        handout.release(self._name)
        self._control.forget(self._name)
        self.start()


def _is_drained(supervisor: _Supervisor) -> bool:
    return not supervisor.has_tasks


def _total(supervisors: Sequence[_Supervisor], handout: Handout) -> RunStatus:
    statuses = [supervisor.status for supervisor in supervisors]
    stages = [status.stage for status in statuses]
    outages = [stage.outage for stage in stages if stage.outage is not None]
    num_up = sum(supervisor.is_up for supervisor in supervisors)
    return RunStatus(
        open=sum_counters([handout.counters(), *(status.open for status in statuses)]),
        stage=StageStatus(
            num_in_flight=sum(stage.num_in_flight for stage in stages),
            max_in_flight=sum(stage.max_in_flight for stage in stages),
            num_retrying=sum(stage.num_retrying for stage in stages),
            outage=min(outages, key=lambda outage: outage.since, default=None),
            endpoints=merge_endpoints(endpoint for stage in stages for endpoint in stage.endpoints),
        ),
        phase="running" if num_up else "starting",
        waits_for=None if num_up else "the workers",
        num_workers=len(supervisors),
        num_workers_up=num_up,
    )
