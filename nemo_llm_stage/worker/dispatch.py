"""
What each worker runs next: whole partitions while there are many, pieces of partitions towards the end.

A worker gets rows shortly before it starts them, and towards the end fewer at a time, so that all workers finish
together. The rows of a piece are only answered and journaled. Once the last piece of a partition is done, one worker
makes the partition's file from the journals. A resumed job need not know of pieces: they leave only journals behind.
Once every row is with some worker, one that has nothing to do gets rows that another has and has not sent.
Knows counts of rows; knows nothing of Ray, files or stages.

Source: guided self-scheduling, Polychronopoulos and Kuck, IEEE Trans. Computers C-36 (12), 1987.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import replace

from nemo_llm_stage.client.throttle import Spending
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.plan import Partition, cut
from nemo_llm_stage.worker.cuts import Cuts
from nemo_llm_stage.worker.moves import Moves
from nemo_llm_stage.worker.returned import Returned, piece_of
from nemo_llm_stage.worker.rowset import RowSet
from nemo_llm_stage.worker.second_sends import Pair, SecondSends, settled
from nemo_llm_stage.worker.standings import Standing, Standings
from nemo_llm_stage.worker.task import GivenBack, OverdueRequest, PieceReport, Report, Task

MAX_TASKS_OPEN = 64
"""Tasks that one worker has at once: each has a thread, a journal and a file."""

MIN_ROWS_AHEAD = 128


class Handout:
    """
    The partitions of one run, and which worker has which. Not for several threads.

    Args:
        partitions: To run.
        num_workers: Workers that share them.
        max_concurrent_requests: Requests that each worker keeps in flight.
        rows_per_partition: Rows of a usual partition, to estimate those that were not counted.
        can_cut: Whether partitions may be cut into pieces.
        hedges: Whether rows that wait at a slow server may be sent a second time at the end.
        fresh: Indexes of partitions that have nothing in the folder.

    Attributes:
        num_workers: Likewise.
    """

    def __init__(
        self,
        partitions: Sequence[Partition],
        *,
        num_workers: int,
        max_concurrent_requests: int,
        rows_per_partition: int,
        can_cut: bool = True,
        hedges: bool = False,
        fresh: Collection[int] = (),
    ) -> None:
        self.num_workers = num_workers
        self._max_concurrent_requests = max_concurrent_requests
        self._can_cut = can_cut and num_workers > 1
        lines = [partition for partition in partitions if partition.format == "jsonl"]
        num_bytes = sum(partition.stop - partition.start for partition in lines)
        num_lines = sum(rows_per_partition if part.num_rows is None else part.num_rows for part in lines)
        self._bytes_per_row = max(1, num_bytes // max(1, num_lines))
        self._todo = deque(partitions)
        self._num_rows_left = sum(map(self._num_rows, partitions))
        self._whole: deque[Task] = deque()  # partitions whose pieces are all done
        self._cuts, self._fresh = Cuts(), set(fresh)
        self._held: dict[str, dict[int, Task]] = {}
        self._returned, self._num_given_back = Returned(), 0
        self._taken_away: dict[str, set[int]] = {}
        self._standings = Standings()
        self._seconds = SecondSends(self._num_rows_left if hedges else 0)
        self._workers: dict[int, str] = {}
        self._numbers = itertools.count(1)

    @property
    def is_over(self) -> bool:
        """Whether every partition is committed."""
        return not (self._todo or self._whole or self._returned or any(self._held.values()))

    @property
    def num_rows_ahead(self) -> int:
        """Unstarted rows each worker should hold; 0 once everything is assigned."""
        if not self._todo:
            return 0
        fewest = max(2, self._max_concurrent_requests // 4)
        most = max(MIN_ROWS_AHEAD, 4 * self._max_concurrent_requests)
        return max(fewest, min(most, self._num_rows_left // (2 * self.num_workers)))

    def follow(self, max_concurrent_requests: int) -> None:
        """Take note of the requests that a worker keeps in flight now, where that adapts."""
        self._max_concurrent_requests = max(1, max_concurrent_requests)

    @property
    def is_ending(self) -> bool:
        """Whether no rows are left that no worker has had: idle ones take from the others."""
        return not self._todo and not self.is_over

    def note(self, worker: str, standing: Standing, now_s: float) -> None:
        """Take note of how `worker` stands at the monotonic time `now_s`."""
        self._standings.note(worker, standing, now_s)

    def take(
        self, worker: str, *, num_waiting: int, num_open: int, num_free: int = 0, is_quick: bool = False
    ) -> list[Task]:
        """
        Assign more tasks to `worker` and return them.

        Args:
            worker: Its name.
            num_waiting: Rows that it has and has not started.
            num_open: Tasks that it has.
            num_free: Requests more that it could have in flight at once: rows that came back go to whom sends them now.
            is_quick: Whether it has a server that is not slow, for rows that wait at one that is.
        """
        tasks = list(self._whole)
        self._whole.clear()
        while self._todo and num_waiting < self.num_rows_ahead and num_open + len(tasks) < MAX_TASKS_OPEN:
            task = self._next()
            num_waiting += task.num_rows
            tasks.append(task)
        num_back = min(num_free, self._returned.fair_share(self._standings.num_idle))
        while self._returned and num_back > 0 and num_open + len(tasks) < MAX_TASKS_OPEN:
            task = self._next_returned(num_back)
            num_back -= task.num_rows
            tasks.append(task)
        tasks = [replace(task, number=next(self._numbers)) for task in tasks]
        while is_quick and not self._returned and len(tasks) < num_free and num_open + len(tasks) < MAX_TASKS_OPEN:
            if not self.is_ending or (second := self._next_second()) is None:
                break
            tasks.append(second)
        self._held.setdefault(worker, {}).update({task.number: task for task in tasks})
        self._workers.update({task.number: worker for task in tasks})
        return tasks

    def gives_back(self, worker: str) -> bool:
        """Whether `worker` should give back what it has not sent, since others have nothing to do."""
        return self.is_ending and not self._returned and self._standings.has_too_much(worker)

    def note_paid(self, paid: Spending) -> None:
        """Take note of what the run has paid for so far: second sends may take a share of it."""
        self._seconds.note_paid(paid)

    def note_overdue(self, worker: str, overdue: tuple[OverdueRequest, ...]) -> None:
        """Take note of the rows of `worker` that are in flight for long at a slow server."""
        self._seconds.note(worker, overdue)

    @property
    def wants_overdue(self) -> bool:
        """Whether workers should tell which rows are in flight for long: others have nothing else to do."""
        return self.is_ending and not self._returned and self._seconds.may_begin and self._standings.num_idle > 0

    def dropped(self, worker: str) -> dict[int, RowSet]:
        """Return the rows that others have answered, by the number of their task with `worker`."""
        return self._seconds.dropped(self._held.get(worker, {}).keys())

    def abandoned(self, worker: str) -> frozenset[int]:
        """Return the tasks that were taken from `worker` while it was silent."""
        return frozenset(self._taken_away.get(worker, ()))

    def finish(self, worker: str, report: Report) -> bool:
        """Take note of what `worker` reports; whether it is about a task that is its own still."""
        task = self._held.get(worker, {}).get(report.number)
        if task is None:
            return False
        if isinstance(report, GivenBack):
            self._take_back(worker, task, report)
            return True
        del self._held[worker][report.number], self._workers[report.number]
        if isinstance(report, PieceReport):
            self._count_piece(report, task)
        else:
            for pair in list(self._seconds.of(report.number)):
                self._call_off(pair)
            self._cuts.forget(report.index)
        return True

    def release(self, worker: str, *, may_come_back: bool = False) -> None:
        """Take back the unfinished tasks of `worker`, which is dead or silent, to assign them again."""
        self._standings.forget(worker)
        self._seconds.forget(worker)
        held = self._held.pop(worker, {})
        if may_come_back:
            self._taken_away.setdefault(worker, set()).update(held)
        else:
            self._taken_away.pop(worker, None)
        for task in reversed(held.values()):
            del self._workers[task.number]
            self._fresh.discard(task.partition.index)
            if (pair := self._seconds.pair_of(task.number)) is not None:  # the first one goes on
                self._seconds.end(pair)
                self._end_piece(task)
                continue
            task = self._release_first(task)
            if task.pieces is not None:
                self._whole.append(task)
            elif task.places is not None:
                if not self._returned.add(task.partition, task.places, task.num_rows):
                    self._end_piece(task)
            else:
                self._todo.appendleft(task.partition)
                self._num_rows_left += task.num_rows

    @property
    def moves(self) -> Moves:
        """What went from workers to others so far."""
        return Moves(self._num_given_back, self._seconds.num_begun, tuple(self._seconds.slow_urls))

    def counters(self) -> Counters:
        """Return the counts of finished pieces whose partitions are not committed yet."""
        return self._cuts.counters()

    def _next(self) -> Task:
        partition = self._todo.popleft()
        num_rows, is_piece = self._num_rows(partition), partition.index in self._cuts
        size = max(1, self._max_concurrent_requests // 8, self._num_rows_left // (2 * self.num_workers))
        parts = cut(partition, size / num_rows) if self._can_cut and 2 * num_rows > 3 * size else None
        if parts is not None:
            self._cuts.add(partition)
            (partition, rest), is_piece = parts, True
            self._todo.appendleft(rest)
        num_rows = self._num_rows(partition)
        self._num_rows_left -= num_rows
        task = Task(partition, num_rows, is_piece=is_piece, is_fresh=partition.index in self._fresh)
        return self._cuts.with_attempts(task) if is_piece else task

    def _next_returned(self, num_rows: int) -> Task:
        task, is_part = self._returned.take(num_rows)
        return self._cuts.add(task.partition, is_part).with_attempts(task)

    def _next_second(self) -> Task | None:
        """Return the row that waits longest at a slow server as a task for another worker; None for none."""
        while (request := self._seconds.next_overdue()) is not None:
            first = self._held.get(self._workers.get(request.number, ""), {}).get(request.number)
            if first is None or not first.can_share:
                continue
            self._cuts.add(first.partition)
            task = piece_of(first.partition, RowSet.of([request.place]), 1, avoids=request.url)
            task = replace(task, number=next(self._numbers), known=request.known, is_fresh=True)  # it is not journaled
            self._seconds.begin(request, task.number)
            return task
        return None

    def _take_back(self, worker: str, task: Task, report: GivenBack) -> None:
        """Let others run rows of a task: it is a piece from now on, and they are another one."""
        self._num_given_back += report.num_rows
        left = task.rows - report.places
        self._cuts.add(task.partition, self._returned.add(task.partition, task.rows - left, report.num_rows))
        num_rows = max(0, task.num_rows - report.num_rows)
        self._held[worker][task.number] = replace(task, is_piece=True, places=left, num_rows=num_rows)

    def _count_piece(self, report: PieceReport, task: Task) -> None:
        if (pair := self._seconds.pair_of(report.number)) is not None:  # settled with the first one
            pair.report = report
            return
        pairs = list(self._seconds.of(report.number))
        for pair in pairs:
            for counters in settled(pair, report.dropped):
                self._cuts.count(task.partition, counters)
        answered = (attempt for pair in pairs for attempt in pair.attempts)
        self._cuts.count(task.partition, report.counters, *answered, report.attempt)  # their answers come first
        for pair in pairs:
            self._call_off(pair)
            self._end_piece(task)
        self._end_piece(task)

    def _call_off(self, pair: Pair) -> None:
        """End a pair; its second task is taken from its worker if that still has it."""
        self._seconds.end(pair)
        worker = self._workers.pop(pair.second, "")
        if self._held.get(worker, {}).pop(pair.second, None) is not None:
            self._taken_away.setdefault(worker, set()).add(pair.second)

    def _release_first(self, task: Task) -> Task:
        """Return a task whose worker is gone without the rows that others send too: they are theirs alone now."""
        for pair in list(self._seconds.of(task.number)):
            if pair.report is None or pair.is_answered:
                task = replace(task, places=task.rows - RowSet.of([pair.place]))
            if pair.report is not None:
                self._cuts.count(task.partition, pair.counters_alone, *pair.attempts)
                self._end_piece(task)
            self._seconds.end(pair)
        return task

    def _end_piece(self, task: Task) -> None:
        whole = self._cuts.end_piece(task.partition.index)
        if whole is not None:
            self._whole.append(whole)

    def _num_rows(self, partition: Partition) -> int:
        num_rows = partition.num_rows
        return num_rows if num_rows is not None else max(1, (partition.stop - partition.start) // self._bytes_per_row)
