"""
A worker with its threads, seen from outside through one call: here is more to do, what is new?

The call returns as soon as there is something to tell, so that whoever hands tasks out needs one call to each worker
and nothing between them. Knows no Ray.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from nemo_llm_stage import errors
from nemo_llm_stage.core import Counters, sum_counters
from nemo_llm_stage.worker.dispatch import MAX_TASKS_OPEN
from nemo_llm_stage.worker.spec import WorkerSpec
from nemo_llm_stage.worker.task import Report, Task
from nemo_llm_stage.worker.worker import PartitionWorker

POLL_S = 0.02
"""How often a worker looks whether it needs more rows."""


@dataclass(frozen=True, slots=True)
class Failure:
    """
    What a task raised; it ends the run.

    Attributes:
        kind: Name of a class of `nemo_llm_stage.errors`.
        message: The error's.
    """

    kind: str
    message: str

    def to_error(self) -> errors.LLMStageError:
        """Return it as the error it was."""
        error: errors.LLMStageError = getattr(errors, self.kind)(self.message)
        return error


@dataclass(frozen=True, slots=True)
class News:
    """
    How a worker stands.

    Attributes:
        reports: Of the tasks done since the call before, or what broke.
        num_waiting: Rows that it has and has not started.
        num_open: Tasks that it has.
        num_in_flight: Requests in flight.
        open: Counts of the rows finished in the tasks that it has.
        trouble: Why rows are being put off; None where all is well.
    """

    reports: tuple[Report | Failure, ...] = ()
    num_waiting: int = 0
    num_open: int = 0
    num_in_flight: int = 0
    open: Counters = field(default_factory=Counters)
    trouble: str | None = None


class WorkerHost:
    """
    Runs tasks side by side.

    Args:
        spec: What makes the worker.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker = PartitionWorker(spec)
        self._pool = ThreadPoolExecutor(2 * MAX_TASKS_OPEN, "partition")  # files are made beside what is open
        self._changed = threading.Condition()
        self._reports: list[Report | Failure] = []
        self._num_open = 0
        self._is_stopped = False

    def exchange(self, tasks: Sequence[Task], num_rows_ahead: int, patience_s: float) -> News:
        """
        Begin `tasks`; return when a task is done, when fewer rows wait than `num_rows_ahead`, or after `patience_s`.

        One call at a time.
        """
        with self._changed:
            self._num_open += len(tasks)
        for task in tasks:
            self._pool.submit(self._run, task)
        with self._changed:
            give_up_s = time.monotonic() + patience_s
            while not (self._reports or self._is_stopped or self._wants_more(num_rows_ahead)):
                self._changed.wait(POLL_S)
                if time.monotonic() > give_up_s:
                    break
            reports, self._reports = self._reports, []
        worker = self._worker
        return News(
            reports=tuple(reports),
            num_waiting=worker.num_waiting,
            num_open=self._num_open,
            num_in_flight=worker.num_in_flight,
            open=sum_counters(worker.open.values()),
            trouble=worker.trouble,
        )

    def stop(self) -> None:
        """Abandon what runs, and return when it is: answers that came are journaled."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        self._worker.stop()
        self._pool.shutdown()

    def _wants_more(self, num_rows_ahead: int) -> bool:
        return self._num_open < MAX_TASKS_OPEN and self._worker.num_waiting < num_rows_ahead

    def _run(self, task: Task) -> None:
        report: Report | Failure
        try:
            report = self._worker.do(task)
        except errors.LLMStageError as error:
            report = Failure(type(error).__name__, str(error))
        except BaseException as error:  # noqa: BLE001 - told to whoever drives the run, who stops it
            text = "".join(traceback.format_exception(error))
            report = Failure("RunError", f"a worker broke: {text}")
        with self._changed:
            self._num_open -= 1
            self._reports.append(report)
            self._changed.notify()
