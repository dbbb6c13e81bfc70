"""
A task that a worker runs: which of its rows are read, and which of them go back to the driver before they are sent.

Lies between the thread that reads and writes a task and the one that talks with the driver. Knows places of rows; knows
nothing of files or answers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import pyarrow as pa

from nemo_llm_stage.core import Origin, Outcome
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.stage.hand import Hand
from nemo_llm_stage.worker.chunk import Chunk
from nemo_llm_stage.worker.rowset import RowSet
from nemo_llm_stage.worker.task import GivenBack, PieceReport, Task


class OpenTask:
    """
    One task while it is run. Its methods may be called from any thread.

    Args:
        task: What is run.
        can_share: Whether rows of it may go back.

    Attributes:
        task: Likewise.
        counters: Of the rows that it has finished.
        sent: Of a row that is sent a second time, what was asked for here.
        has_shared: Whether rows of it have gone back: what is left of it is a piece.
        is_abandoned: Whether it is given up.
    """

    def __init__(self, task: Task, *, can_share: bool) -> None:
        self.task = task
        self.counters = Counters()
        self.sent = Counters() if task.avoids is not None else None
        self.has_shared = False
        self.is_abandoned = False
        self._can_share = can_share
        self._lock = threading.Lock()
        self._num_read = 0
        self._num_submitted = 0
        self._is_read = False
        self._places: Sequence[int] = ()
        self._hands: list[tuple[Sequence[int], Hand]] = []
        self._rest = self._given = RowSet(())
        self._num_given = 0
        self._futures: set[Future[Any]] = set()

    @property
    def is_half_a_second_send(self) -> bool:
        """Whether its row is sent a second time, and was called off before it had all of its answers."""
        return self.is_abandoned and self.task.avoids is not None and not self.counters.num_rows

    def chunks(self, tables: Iterable[pa.Table]) -> Iterator[Chunk]:
        """Yield the rows of `tables`, the task's partition, that belong to the task, until the rest is given back."""
        wanted, start = self.task.places, 0
        for table in tables:
            stop = start + table.num_rows
            places = range(start, stop) if wanted is None else wanted.within(start, stop)
            with self._lock:
                if self._rest:
                    return
                self._num_read, self._places = stop, places
                self._num_submitted += len(places)
            if len(places) == table.num_rows:
                yield Chunk.whole(table)
            elif places:
                yield Chunk.whole(table.take([place - start for place in places]))
            start = stop
        with self._lock:
            self._is_read = not self._rest

    def piece_report(self, attempt: str) -> PieceReport:
        """Return that the rows of the task are journaled, by the attempt of this name."""
        with self._lock:
            wasted = [had for _, hand in self._hands for had in hand.dropped.values() if had]
        for had in wasted:
            self.counters.waste(had)
        return PieceReport(self.task.partition, self.counters, attempt, self.task.number, self.dropped, self.sent)

    def count(self, outcome: Outcome) -> None:
        """Count a finished row; where a file is made from pieces, only what they have not counted."""
        if self.task.pieces is not None:
            outcome = {name: result for name, result in outcome.items() if result.origin is not Origin.JOURNAL}
        self.counters.count(outcome)
        if self.sent is not None:
            self.sent.count({name: result for name, result in outcome.items() if name not in self.task.known})

    def hand(self) -> Hand | None:
        """Return the hand for the chunk that was yielded last; None if its rows stay."""
        if not self._can_share:
            return None
        hand = Hand()
        with self._lock:
            self._hands.append((self._places, hand))
        return hand

    def watch(self, future: Future[Any]) -> None:
        """Cancel `future` if the task is abandoned."""
        with self._lock:
            self._futures.add(future)
            is_abandoned = self.is_abandoned
        future.add_done_callback(self._futures.discard)
        if is_abandoned:
            future.cancel()

    def abandon(self) -> None:
        """Give the task up: whoever waits for its rows gets a `CancelledError`."""
        with self._lock:
            self.is_abandoned = True
            futures = list(self._futures)
        for future in futures:
            future.cancel()

    def check(self) -> None:
        """
        Make sure that the task is not abandoned.

        Raises:
            concurrent.futures.CancelledError: It is.
        """
        if self.is_abandoned:
            raise CancelledError

    def cut(self) -> bool:
        """Read no more, and give the unread rows back; return whether there may be any."""
        with self._lock:
            stop = self.task.places.ranges[-1][1] if self.task.places else self.task.partition.num_rows
            is_read = self._is_read or self._rest or (stop is not None and self._num_read >= stop)
            if not self._can_share or is_read:
                return False
            read = RowSet.span(0, self._num_read)
            self._rest = (RowSet.span(0) if self.task.places is None else self.task.places) - read
            self._given, self._num_given = self._rest, max(1, self.task.num_rows - self._num_submitted)
            self.has_shared = True
            return True

    def place_of(self, hand: Hand, place: int) -> int | None:
        """Return where the row at this place of a submission is in the partition; None where it is another task's."""
        with self._lock:
            return next((places[place] for places, mine in self._hands if mine is hand), None)

    def submitted(self, rows: RowSet) -> list[tuple[Hand, set[int]]]:
        """Return the submissions that have some of these rows, and their places there."""
        with self._lock:
            found = [(hand, {at for at, row in enumerate(places) if row in rows}) for places, hand in self._hands]
        return [(hand, places) for hand, places in found if places]

    @property
    def dropped(self) -> RowSet:
        """The rows that were cancelled because another worker had answered them."""
        with self._lock:
            return RowSet.of(places[place] for places, hand in self._hands for place in hand.dropped)

    def take_given_back(self) -> GivenBack | None:
        """Return the rows that have gone back since the last call; None for none."""
        with self._lock:
            places = [rows[place] for rows, hand in self._hands for place in hand.take()]
            given, num_rows = self._given | RowSet.of(places), self._num_given + len(places)
            self._given, self._num_given = RowSet(()), 0
            self.has_shared = self.has_shared or bool(places)
        return GivenBack(self.task.number, given, num_rows) if given else None
