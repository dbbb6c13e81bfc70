"""
What each worker runs next: whole partitions while there are many, pieces of partitions towards the end.

A worker gets rows shortly before it starts them, and towards the end fewer at a time, so that all workers finish
together. The rows of a piece are only answered and journaled. Once the last piece of a partition is done, one worker
makes the partition's file from the journals. A resumed job need not know of pieces: they leave only journals behind.
Knows counts of rows; knows nothing of Ray, files or stages.

Source: guided self-scheduling, Polychronopoulos and Kuck, IEEE Trans. Computers C-36 (12), 1987.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from nemo_llm_stage.counters import Counters, sum_counters
from nemo_llm_stage.dataset.plan import Partition, cut
from nemo_llm_stage.worker.task import PieceReport, Report, Task

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
    """

    def __init__(
        self,
        partitions: Sequence[Partition],
        *,
        num_workers: int,
        max_concurrent_requests: int,
        rows_per_partition: int,
        can_cut: bool = True,
    ) -> None:
        self.num_workers = num_workers
        self._max_concurrent_requests = max_concurrent_requests
        self._can_cut = can_cut and num_workers > 1
        uncounted = [partition.stop - partition.start for partition in partitions if partition.num_rows is None]
        self._bytes_per_row = max(1, sum(uncounted) // (max(1, len(uncounted)) * max(1, rows_per_partition)))
        self._todo = deque(partitions)
        self._num_rows_left = sum(map(self._num_rows, partitions))
        self._whole: deque[Task] = deque()  # partitions whose pieces are all done
        self._cuts: dict[int, _Cut] = {}
        self._held: dict[str, dict[Partition | int, Task]] = {}

    @property
    def is_over(self) -> bool:
        """Whether every partition is committed."""
        return not (self._todo or self._whole or any(self._held.values()))

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

    def take(self, worker: str, *, num_waiting: int, num_open: int) -> list[Task]:
        """
        Assign more tasks to `worker` and return them.

        Args:
            worker: Its name.
            num_waiting: Rows that it has and has not started.
            num_open: Tasks that it has.
        """
        tasks = list(self._whole)
        self._whole.clear()
        while self._todo and num_waiting < self.num_rows_ahead and num_open + len(tasks) < MAX_TASKS_OPEN:
            task = self._next()
            num_waiting += task.num_rows
            tasks.append(task)
        self._held.setdefault(worker, {}).update({_key(task): task for task in tasks})
        return tasks

    def finish(self, worker: str, report: Report) -> None:
        """Note that `worker` has finished a task."""
        held = self._held.get(worker, {})
        if isinstance(report, PieceReport):
            del held[report.piece]
            self._count_piece(report)
        else:
            del held[report.index]
            self._cuts.pop(report.index, None)

    def release(self, worker: str) -> None:
        """Take back the unfinished tasks of `worker`, which is dead, to assign them again."""
        for task in reversed(self._held.pop(worker, {}).values()):
            if task.pieces is not None:
                self._whole.append(task)
            else:
                self._todo.appendleft(task.partition)
                self._num_rows_left += task.num_rows

    def counters(self) -> Counters:
        """Return the counts of finished pieces whose partitions are not committed yet."""
        return sum_counters(piece.counters for cut in self._cuts.values() for piece in cut.pieces)

    def _next(self) -> Task:
        partition = self._todo.popleft()
        num_rows, is_piece = self._num_rows(partition), partition.index in self._cuts
        size = max(1, self._max_concurrent_requests // 8, self._num_rows_left // (2 * self.num_workers))
        parts = cut(partition, size / num_rows) if self._can_cut and 2 * num_rows > 3 * size else None
        if parts is not None:
            known = self._cuts.setdefault(partition.index, _Cut(partition))
            known.num_left += 1
            partition, rest = parts
            self._todo.appendleft(rest)
            is_piece = True
        num_rows = self._num_rows(partition)
        self._num_rows_left -= num_rows
        if not is_piece:
            return Task(partition, num_rows)
        return Task(partition, num_rows, is_piece=True, attempts=self._cuts[partition.index].attempts)

    def _count_piece(self, report: PieceReport) -> None:
        known = self._cuts[report.piece.index]
        known.pieces.append(report)
        known.num_left -= 1
        if not known.num_left:
            counters = sum_counters(piece.counters for piece in known.pieces)
            self._whole.append(Task(known.partition, counters.num_rows, pieces=counters, attempts=known.attempts))

    def _num_rows(self, partition: Partition) -> int:
        if partition.num_rows is not None:
            return partition.num_rows
        return max(1, (partition.stop - partition.start) // self._bytes_per_row)


@dataclass
class _Cut:
    """A partition that is run in pieces. `num_left` counts the unfinished pieces and the rest that is not cut yet."""

    partition: Partition
    num_left: int = 1
    pieces: list[PieceReport] = field(default_factory=list)

    @property
    def attempts(self) -> tuple[str, ...]:
        return tuple(piece.attempt for piece in self.pieces)


def _key(task: Task) -> Partition | int:
    return task.partition if task.is_piece else task.partition.index
