"""
Rows that are sent a second time, because their server is slow and nothing else is left to do.

A row stays with the task that sent it first, and goes to another worker as a task of its own. Whichever is journaled
first wins; the other one is cancelled, and what it took is counted as waste. Knows reports; knows nothing of servers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.worker.rowset import RowSet
from nemo_llm_stage.worker.task import OverdueRequest, PieceReport

MAX_SHARE = 0.02
"""Of a job's rows, those that are sent a second time at most."""


@dataclass(slots=True)
class Pair:
    """
    One row that is with two workers.

    Attributes:
        first: Number of the task that sent it first.
        place: The row in that task's partition.
        second: Number of the task that sends it again.
        report: Of the second task, once it has ended.
    """

    first: int
    place: int
    second: int
    report: PieceReport | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the second request has an answer in the journal."""
        return self.report is not None and self.report.counters.num_rows > self.report.counters.num_failed


class SecondSends:
    """
    The rows of one run that are with two workers.

    Args:
        max_num: Most of them in the run.
    """

    def __init__(self, max_num: int) -> None:
        self._num_left = max_num
        self._overdue: dict[str, list[OverdueRequest]] = {}
        self._pairs: dict[int, Pair] = {}
        self._of_first: dict[int, list[Pair]] = {}

    @property
    def may_begin(self) -> bool:
        """Whether one more row may be sent again."""
        return self._num_left > 0

    def note(self, worker: str, overdue: tuple[OverdueRequest, ...]) -> None:
        """Take note of the rows of `worker` that are in flight for long."""
        self._overdue[worker] = sorted(overdue, key=lambda request: request.age_s)

    def forget(self, worker: str) -> None:
        """Take note that `worker` is gone."""
        self._overdue.pop(worker, None)

    def next_overdue(self) -> OverdueRequest | None:
        """Take the row that waits longest, of those that are not sent again yet."""
        while self.may_begin:
            longest = max(filter(None, self._overdue.values()), key=lambda rows: rows[-1].age_s, default=None)
            if longest is None:
                return None
            request = longest.pop()
            if all(pair.place != request.place for pair in self.of(request.number)):
                return request
        return None

    def begin(self, request: OverdueRequest, second: int) -> None:
        """Take note that a task sends the row again."""
        pair = Pair(request.number, request.place, second)
        self._pairs[second] = pair
        self._of_first.setdefault(request.number, []).append(pair)
        self._num_left -= 1

    def pair_of(self, second: int) -> Pair | None:
        """Return the row that the task with this number sends again; None if it is another kind of task."""
        return self._pairs.get(second)

    def of(self, first: int) -> list[Pair]:
        """Return the rows of a task that are sent again."""
        return self._of_first.get(first, [])

    def end(self, pair: Pair) -> None:
        """Forget a row: it is with one worker, or done."""
        self._pairs.pop(pair.second, None)
        pairs = self._of_first.get(pair.first, [])
        if pair in pairs:
            pairs.remove(pair)
        if not pairs:
            self._of_first.pop(pair.first, None)

    def dropped(self, first: int) -> RowSet:
        """Return the rows of a task that the second request has answered."""
        return RowSet.of(pair.place for pair in self.of(first) if pair.is_answered)


def settled(pair: Pair, dropped: RowSet) -> Iterator[Counters]:
    """Yield what a row's two requests count, once the first task has ended, which `dropped` some rows."""
    if pair.report is None:  # it is cancelled
        yield Counters().as_second_send()
    elif pair.is_answered and pair.place in dropped:
        yield pair.report.counters
        yield Counters().as_second_send()
    else:
        yield pair.report.counters.as_second_send()
