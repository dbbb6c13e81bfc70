"""
Rows that are sent a second time, because their server is slow and nothing else is left to do.

A row stays with the task that sent it first, and goes to another worker as a task of its own. Whichever is journaled
first wins; the other one is cancelled, and what it took is counted as waste. Knows reports; knows nothing of servers.
"""

from __future__ import annotations

from collections.abc import Iterator, KeysView
from dataclasses import dataclass

from nemo_llm_stage.client.throttle import Spending
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.worker.rowset import RowSet
from nemo_llm_stage.worker.task import OverdueRequest, PieceReport

MAX_SHARE = 0.02
"""Of the tokens that a run has paid for, those that second sends may take; of its rows while tokens are not known."""


@dataclass(slots=True)
class Pair:
    """
    One row that is with two workers.

    Attributes:
        first: Number of the task that sent it first.
        place: The row in that task's partition.
        second: Number of the task that sends it again.
        num_missing: Answers that the second task asks for.
        report: Of the second task, once it has ended.
    """

    first: int
    place: int
    second: int
    num_missing: int = 1
    report: PieceReport | None = None

    @property
    def sent(self) -> Counters:
        """What the second task has asked for itself, so far as it told."""
        return Counters() if self.report is None else self.report.sent or self.report.counters

    @property
    def counters_alone(self) -> Counters:
        """What the second task counts where the first one is gone: a row that it could not answer goes to others."""
        whole = Counters() if self.report is None else self.report.counters
        return whole if self.is_answered else self.sent.as_second_send()

    @property
    def attempts(self) -> tuple[str, ...]:
        """The journal that has the answers, if all that were asked for are there."""
        return (self.report.attempt,) if self.report is not None and self.is_answered else ()

    @property
    def is_answered(self) -> bool:
        """Whether the answers that it asked for are in the journal."""
        return self.sent.num_rows > self.sent.num_failed


class Allotment:
    """
    What second sends may take: a share of the tokens that the run has paid for so far.

    They begin when nothing else is left to do, so this is nearly all that the run takes. A request whose answer has not
    come counts with the mean of all answers.

    Args:
        num_rows: Of the run; 0 for no second sends.
    """

    def __init__(self, num_rows: int) -> None:
        self._is_open = num_rows > 0
        self._num_rows_left = int(MAX_SHARE * num_rows)
        self._paid = Spending()
        self._num_unknown = 0
        self._num_tokens = 0

    def note_paid(self, paid: Spending) -> None:
        """Take note of what the run has paid for so far."""
        self._paid = paid

    def has_room_for(self, num_requests: int) -> bool:
        """Whether a row may be sent again that lacks so many answers."""
        if not self._paid.num_tokens:
            return self._num_rows_left > 0
        mean = self._paid.num_tokens / max(1, self._paid.num_answers)
        taken = self._num_tokens + (self._num_unknown + num_requests) * mean
        return self._is_open and taken <= MAX_SHARE * self._paid.num_tokens

    def begin(self, pair: Pair) -> None:
        """Take note that a row is sent again."""
        self._num_rows_left -= 1
        self._num_unknown += pair.num_missing

    def end(self, pair: Pair) -> None:
        """Take note of what a second send took, where it is known: of two requests it was about one."""
        if num_tokens := pair.sent.input_tokens + pair.sent.output_tokens:
            self._num_unknown -= pair.num_missing
            self._num_tokens += num_tokens


class SecondSends:
    """
    The rows of one run that are with two workers.

    Args:
        num_rows: Of the run; 0 for no second sends.

    Attributes:
        num_begun: Rows that were sent again so far.
        slow_urls: Base URLs of the servers where they were in flight, in order.
    """

    def __init__(self, num_rows: int) -> None:
        self._allotment = Allotment(num_rows)
        self._overdue: dict[str, list[OverdueRequest]] = {}
        self._pairs: dict[int, Pair] = {}
        self._of_first: dict[int, list[Pair]] = {}
        self.num_begun = 0
        self.slow_urls: dict[str, None] = {}

    @property
    def may_begin(self) -> bool:
        """Whether one more row may be sent again."""
        return self._allotment.has_room_for(1)

    def note_paid(self, paid: Spending) -> None:
        """Take note of what the run has paid for so far."""
        self._allotment.note_paid(paid)

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
            is_new = all(pair.place != request.place for pair in self.of(request.number))
            if is_new and self._allotment.has_room_for(request.num_missing):
                return request
        return None

    def begin(self, request: OverdueRequest, second: int) -> None:
        """Take note that a task sends the row again."""
        pair = Pair(request.number, request.place, second, request.num_missing)
        self._pairs[second] = pair
        self._of_first.setdefault(request.number, []).append(pair)
        self._allotment.begin(pair)
        self.num_begun += 1
        self.slow_urls[request.url] = None

    def pair_of(self, second: int) -> Pair | None:
        """Return the row that the task with this number sends again; None if it is another kind of task."""
        return self._pairs.get(second)

    def of(self, first: int) -> list[Pair]:
        """Return the rows of a task that are sent again."""
        return self._of_first.get(first, [])

    def end(self, pair: Pair) -> None:
        """Forget a row: it is with one worker, or done."""
        if self._pairs.pop(pair.second, None) is not None:
            self._allotment.end(pair)
        pairs = self._of_first.get(pair.first, [])
        if pair in pairs:
            pairs.remove(pair)
        if not pairs:
            self._of_first.pop(pair.first, None)

    def dropped(self, tasks: KeysView[int]) -> dict[int, RowSet]:
        """Return the rows of these tasks that the second request has answered, by task."""
        found = {
            first: RowSet.of(pair.place for pair in self._of_first[first] if pair.is_answered)
            for first in self._of_first.keys() & tasks
        }
        return {first: rows for first, rows in found.items() if rows}


def settled(pair: Pair, dropped: RowSet) -> Iterator[Counters]:
    """Yield what a row's two requests count, once the first task has ended, which `dropped` some rows."""
    if pair.report is None:  # it is cancelled
        yield Counters().as_second_send()
    elif pair.is_answered and pair.place in dropped:
        yield pair.report.counters
        yield Counters().as_second_send()
    else:
        yield pair.sent.as_second_send()
