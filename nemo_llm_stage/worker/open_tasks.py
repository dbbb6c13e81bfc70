"""
The tasks that a worker runs at the moment, and what of them goes back to the driver.

Knows nothing of how a task is run. Safe for several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping

from nemo_llm_stage.counters import Counters, sum_counters
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.stage.runtime import Runtime
from nemo_llm_stage.worker.open_task import OpenTask
from nemo_llm_stage.worker.rowset import RowSet
from nemo_llm_stage.worker.task import GivenBack, OverdueRequest, Task

MAX_OVERDUE = 64
"""Rows in flight for long that a worker tells at once: they may hold long answers, and few are sent a second time."""


class OpenTasks:
    """
    The open tasks of one worker.

    Args:
        can_share: Whether rows may go back; not those of a retry, whose files are there already.
    """

    def __init__(self, *, can_share: bool) -> None:
        self._can_share = can_share
        self._tasks: dict[tuple[int, Partition], OpenTask] = {}
        self._given_back: list[GivenBack] = []
        self._kept = Counters()
        self._lock = threading.Lock()

    @property
    def counters(self) -> Counters:
        """Counts of the rows finished in open tasks and drained ones; files made from pieces count none."""
        open_tasks = (task.counters for task in self._listed() if task.task.pieces is None)
        return sum_counters([self._kept, *open_tasks])

    def open(self, task: Task) -> OpenTask:
        """Return the task as it is run; the same each time. It may be given up before anybody runs it."""
        with self._lock:
            if task.key not in self._tasks:
                self._tasks[task.key] = OpenTask(task, can_share=self._can_share and task.can_share)
            return self._tasks[task.key]

    def close(self, open_task: OpenTask, *, keeps: bool = False) -> None:
        """Forget a task that has ended, but not what it gave back; a drained one `keeps` its counts."""
        with self._lock:
            if self._tasks.pop(open_task.task.key, None) is not None and keeps and open_task.task.pieces is None:
                self._kept = sum_counters([self._kept, open_task.counters])
            self._note(open_task)

    def cut(self) -> list[Task]:
        """Let no task read more of its rows; return those that had unread ones."""
        return [open_task.task for open_task in self._listed() if open_task.cut()]

    def abandon(self, numbers: Collection[int]) -> None:
        """Give up the tasks with these numbers, if they have not ended."""
        for open_task in self._listed():
            if open_task.task.number in numbers:
                open_task.abandon()

    def overdue(self, runtime: Runtime, after_s: Mapping[str, float]) -> tuple[OverdueRequest, ...]:
        """Return the rows longest in flight beyond what this says for their server; their tasks are pieces then."""
        found = []
        tasks = self._listed()
        for row in runtime.overdue(after_s, MAX_OVERDUE):
            for open_task in tasks:
                place = open_task.place_of(row.hand, row.place)
                if place is not None:
                    open_task.has_shared = True
                    found.append(OverdueRequest(open_task.task.number, place, *row[2:]))
        return tuple(found)

    def drop(self, runtime: Runtime, dropped: Mapping[int, RowSet]) -> None:
        """Cancel rows that another worker has answered: number of a task → its rows."""
        for open_task in self._listed():
            rows = dropped.get(open_task.task.number)
            if rows:
                for hand, places in open_task.submitted(rows):
                    runtime.drop(hand, places)

    def take_given_back(self) -> list[GivenBack]:
        """Return what has gone back since the last call, also of tasks that have ended."""
        with self._lock:
            for open_task in self._tasks.values():
                self._note(open_task)
            given, self._given_back = self._given_back, []
        return given

    def _listed(self) -> list[OpenTask]:
        with self._lock:
            return list(self._tasks.values())

    def _note(self, open_task: OpenTask) -> None:
        given = open_task.take_given_back()
        if given is not None:
            self._given_back.append(given)
