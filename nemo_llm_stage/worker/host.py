"""
A worker with its threads, seen from outside through one call: start these tasks, and say how you stand.

The call returns as soon as there is something to report, so that the driver needs one call to each worker and no
polling. Knows no Ray.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from nemo_llm_stage import errors
from nemo_llm_stage.client.open_files import lack_of_files
from nemo_llm_stage.client.throttle import Spending
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.stage.status import StageStatus
from nemo_llm_stage.text import printable
from nemo_llm_stage.worker.dispatch import MAX_TASKS_OPEN
from nemo_llm_stage.worker.orders import NO_ORDERS, Need, Orders
from nemo_llm_stage.worker.spec import WorkerSpec
from nemo_llm_stage.worker.standings import Standing
from nemo_llm_stage.worker.task import OverdueRequest, Report, Task
from nemo_llm_stage.worker.worker import PartitionWorker


@dataclass(frozen=True, slots=True)
class Failure:
    """
    An error of a task; it ends the run.

    Attributes:
        kind: Name of a class of `nemo_llm_stage.errors`.
        message: Of the error.
    """

    kind: str
    message: str

    def to_error(self) -> errors.LLMStageError:
        """Return the error that it was."""
        error: errors.LLMStageError = getattr(errors, self.kind)(self.message)
        return error


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """
    How a worker stands.

    Attributes:
        reports: Reports and failures of the tasks that ended since the last status.
        num_waiting: Rows that it has and has not started.
        num_open: Tasks that it has.
        open: Counts of the rows finished in the tasks that it has.
        spending: What its requests took since it began.
        stage: How its stage stands.
        rows: A few rows that it has just finished.
        overdue: Requests in flight for long, if it was asked for them.
    """

    reports: tuple[Report | Failure, ...] = ()
    num_waiting: int = 0
    num_open: int = 0
    open: Counters = field(default_factory=Counters)
    spending: Spending = field(default_factory=Spending)
    stage: StageStatus = field(default_factory=StageStatus)
    rows: tuple[dict[str, Any], ...] = ()
    overdue: tuple[OverdueRequest, ...] = ()

    @property
    def need(self) -> Need:
        """What its orders hang on."""
        return Need(self.num_waiting, self.stage.num_in_flight, self.stage.num_retrying, self.spending, self.rows)

    def standing(self, *, can_send: bool) -> Standing:
        """Return it as the hand-out sees it. A worker that can send nothing, e.g. in an outage, is not free."""
        stage = self.stage
        is_well = can_send and stage.outage is None
        return Standing(
            num_unsent=self.num_waiting + stage.num_waiting,
            num_free=max(0, stage.max_in_flight - stage.num_in_flight) if is_well else 0,
            num_answers=self.spending.num_answers,
        )


class WorkerHost:
    """
    Runs a worker's tasks side by side.

    Args:
        spec: What makes the worker.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker = PartitionWorker(spec)
        self._pool = ThreadPoolExecutor(2 * MAX_TASKS_OPEN, "partition")  # files are made beside open tasks
        self._changed = self._worker.backlog.changed
        self._reports: list[Report | Failure] = []
        if lack := lack_of_files(spec.max_concurrent_requests):
            self._reports.append(Failure("ConfigError", lack))
        self._num_open = 0
        self._is_stopped = False

    def collect(
        self, tasks: Sequence[Task], num_rows_ahead: int, timeout_s: float, orders: Orders = NO_ORDERS
    ) -> WorkerStatus:
        """
        Start `tasks`, obey `orders`, wait for news, and return how the worker stands.

        Returns when a task has ended, when fewer rows wait than `num_rows_ahead`, or after `timeout_s`. One call at a
        time.

        Args:
            tasks: To run beside those that it has.
            num_rows_ahead: Rows that should wait to be started.
            timeout_s: Seconds to wait at most.
            orders: How to run from now on.
        """
        worker = self._worker
        worker.follow(orders)
        with self._changed:
            self._num_open += len(tasks)
            worker.backlog.want(num_rows_ahead)
            for task in tasks:
                worker.tasks.open(task)
                worker.backlog.add(task.key, task.num_rows)
        for task in tasks:
            self._pool.submit(self._run, task)
        given_back = worker.tasks.take_given_back()
        with self._changed:
            self._changed.wait_for(self._has_news, 0.0 if given_back or worker.overdue else timeout_s)
            reports, self._reports = self._reports, []
        given_back += worker.tasks.take_given_back()  # a task gives back before it reports
        stage = worker.spec.stage.status()
        worker.fit_to(stage.max_in_flight)
        return WorkerStatus(
            reports=(*given_back, *reports),
            num_waiting=worker.backlog.num_waiting,
            num_open=self._num_open,
            open=worker.tasks.counters,
            spending=worker.spending,
            stage=stage,
            rows=worker.samples.take(),
            overdue=worker.overdue,
        )

    def stop(self) -> None:
        """Abandon all tasks, and return when they have ended: answers that came are journaled."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        self._worker.stop()
        self._pool.shutdown()

    def _has_news(self) -> bool:
        needs_tasks = self._num_open < MAX_TASKS_OPEN and self._worker.backlog.needs_rows
        return bool(self._reports) or self._is_stopped or needs_tasks

    def _run(self, task: Task) -> None:
        report: Report | Failure | None
        try:
            report = self._worker.run_task(task)
        except CancelledError:
            report = None  # abandoned: the worker is stopped or drained
        except errors.LLMStageError as error:
            report = Failure(type(error).__name__, printable(str(error)))
        except BaseException as error:  # noqa: BLE001 - reported to the driver, which stops the run
            text = "".join(traceback.format_exception(error))
            report = Failure("RunError", f"a worker broke: {printable(text)}")
        with self._changed:
            self._num_open -= 1
            if report is not None:
                self._reports.append(report)
            self._changed.notify_all()
