"""
The loop of a run: assign tasks to workers, collect their reports, assign the tasks of dead workers again.

The same loop drives workers in this process and in others. Knows no Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol

from nemo_llm_stage.client.endpoint_status import merge_endpoints
from nemo_llm_stage.client.throttle import Spending
from nemo_llm_stage.counters import sum_counters
from nemo_llm_stage.errors import RunError
from nemo_llm_stage.stage.status import StageStatus, sum_orders
from nemo_llm_stage.worker.calls import Calls
from nemo_llm_stage.worker.dispatch import Handout
from nemo_llm_stage.worker.engine import DRAIN_TICK_S, TICK_S, Monitor, RunStatus
from nemo_llm_stage.worker.host import Failure, WorkerStatus
from nemo_llm_stage.worker.lost_answers import OnLost, nothing_to_save
from nemo_llm_stage.worker.orders import NO_CONTROL, NO_ORDERS, Control, Orders
from nemo_llm_stage.worker.slowness import Slowness
from nemo_llm_stage.worker.task import PartitionReport, Task

logger = logging.getLogger(__name__)

MAX_DEATHS = 30
"""Deaths of one worker in a row, without a finished row in between, after which the run is given up."""

SILENT_S = 60.0
"""A worker that has not reported for so long is treated as lost, though it may come back."""

MAX_GAP_S = 5.0
"""Seconds that count as silence between two looks, at most: this process may have slept itself."""

MAX_REPORTS_PER_S = 400.0
"""Reports without news that all workers make together, at most. On Ray one takes 1.1 ms of the driver's CPU
(benchmarks/bench_driver.py, 200 actors); so a thousand workers take less than half a core."""


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


def drive(
    slots: Sequence[WorkerSlot],
    handout: Handout,
    monitor: Monitor,
    control: Control = NO_CONTROL,
    pending: Calls[Any] | None = None,
    on_lost: OnLost = nothing_to_save,
) -> Iterator[PartitionReport]:
    """
    Run the partitions of `handout`, and yield a report for each as it is committed, in any order.

    Ends before that once the workers have drained, if `control` orders it.

    Args:
        slots: The places of the workers.
        handout: What they run.
        monitor: Told how the run stands.
        control: Gives the workers orders.
        pending: Tells which calls to workers have ended, and the time; None for those of this machine.
        on_lost: Saves the answers of a worker that is lost.

    Raises:
        Exception: What a worker or `monitor` raised.
        RunError: A worker died again and again.
    """
    calls: Calls[_Supervisor] = Calls() if pending is None else pending
    slowness = Slowness()
    shared = (control, calls, slowness, on_lost)
    supervisors = [_Supervisor(str(number), slot, *shared) for number, slot in enumerate(slots)]
    for supervisor in supervisors:
        supervisor.start()
    ticked_s = calls.now_s()
    while not handout.is_over and not (control.is_draining and not any(each.has_tasks for each in supervisors)):
        for supervisor in calls.wait(ticked_s + _tick_s(control) - calls.now_s()):
            yield from supervisor.handle_status(handout)
        if calls.now_s() - ticked_s >= _tick_s(control):
            status = _total(supervisors, handout)
            monitor(status)
            if handout.is_ending:
                handout.note_paid(sum((each.paid for each in supervisors), Spending()))
            if handout.wants_overdue:
                slowness.look(status.stage.endpoints)
            for supervisor in supervisors:
                supervisor.listen(handout, min(calls.now_s() - ticked_s, MAX_GAP_S))
            ticked_s = calls.now_s()
    monitor(_total(supervisors, handout))


def _tick_s(control: Control) -> float:
    return DRAIN_TICK_S if control.is_draining else TICK_S


def _report_s(control: Control, handout: Handout) -> float:
    """Return after how many seconds a worker reports that has no news: rarely where there are many."""
    is_near_end = control.is_draining or handout.is_ending
    return max(DRAIN_TICK_S if is_near_end else TICK_S, handout.num_workers / MAX_REPORTS_PER_S)


class _Supervisor:
    """
    Watches one slot: keeps the worker's last status and the pending call to it.

    `has_tasks` says whether the worker had tasks, or was given some, by its last status.
    """

    def __init__(
        self,
        name: str,
        slot: WorkerSlot,
        control: Control,
        calls: Calls[_Supervisor],
        slowness: Slowness,
        on_lost: OnLost,
    ) -> None:
        self.status = WorkerStatus()
        self.is_up = self.has_tasks = False
        self._paid_before = Spending()
        self._name = name
        self._slot = slot
        self._control = control
        self._calls = calls
        self._slowness = slowness
        self._on_lost = on_lost
        self._asks = False
        self._num_deaths, self._silent_s = 0, 0.0

    def start(self) -> None:
        # The worker gets its first task when it is up: before, it may wait for room in the cluster.
        self._paid_before = self.paid
        self.status = WorkerStatus()
        self.is_up = self.has_tasks = False
        self._await(self._slot.start())

    @property
    def paid(self) -> Spending:
        """What the worker has paid for, and those before it in its place."""
        return self._paid_before + self.status.spending

    def _await(self, call: Future[WorkerStatus]) -> None:
        self._silent_s = 0.0
        self._call = call
        self._calls.add(call, self)

    def listen(self, handout: Handout, seconds: float) -> None:
        """Take note that so many seconds have passed: the tasks of a worker that is silent for long go to others."""
        self._silent_s += seconds
        if self.is_up and self._silent_s >= SILENT_S:
            logger.warning("worker %s has not reported for %.0f s; others run what it had", self._name, self._silent_s)
            self.is_up = False
            self._on_lost(self._name, False)
            handout.release(self._name, may_come_back=True)

    def handle_status(self, handout: Handout) -> Iterator[PartitionReport]:
        """Take the worker's new status, assign more tasks to it, and yield the partitions that it has committed."""
        try:
            self.status = self._call.result()
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
        known = [report for report in reports if not isinstance(report, Failure) and handout.finish(self._name, report)]
        orders = self._control.orders_of(self._name, self.status.need)
        tasks = [] if orders.is_draining else self._take(handout, orders)
        self.has_tasks = bool(tasks) or self.status.num_open > 0
        num_rows_ahead = 0 if orders.is_draining else handout.num_rows_ahead
        orders = replace(
            orders,
            gives_back=handout.gives_back(self._name),
            abandoned=handout.abandoned(self._name),
            dropped=handout.dropped(self._name),
            overdue_s=self._slowness.overdue_s if self._asks else {},
        )
        self._await(self._slot.collect(tasks, num_rows_ahead, _report_s(self._control, handout), orders))
        yield from (report for report in known if isinstance(report, PartitionReport))

    def _take(self, handout: Handout, orders: Orders) -> list[Task]:
        status = self.status
        handout.follow(status.stage.max_in_flight)
        standing = status.standing(can_send=not orders.throttle.is_paused)
        handout.note(self._name, standing, self._calls.now_s())
        if self._asks:
            handout.note_overdue(self._name, status.overdue)
        self._asks = handout.wants_overdue and not self._asks  # the answer comes at once: not with each call
        return handout.take(
            self._name,
            num_waiting=status.num_waiting,
            num_open=status.num_open,
            num_free=standing.num_free - standing.num_unsent,
            is_quick=self._slowness.has_quick(status.stage.endpoints),
        )

    def _handle_loss(self, handout: Handout, error: WorkerLostError) -> None:
        self._num_deaths += 1
        logger.debug("worker %s is lost for the %d. time: %s", self._name, self._num_deaths, error)
        if self._control.is_draining:
            self.has_tasks = False
            return
        if self._num_deaths == MAX_DEATHS:
            raise RunError(
                f"a worker died {MAX_DEATHS} times in a row before it had finished a row: {error} See Ray's logs."
            ) from error
        self._on_lost(self._name, True)
        handout.release(self._name)
        self._control.forget(self._name)
        self.start()


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
            order=sum_orders(stage.order for stage in stages),
        ),
        phase="running" if num_up else "starting",
        waits_for=None if num_up else "the workers",
        num_workers=len(supervisors),
        num_workers_up=num_up,
        moves=handout.moves,
    )
