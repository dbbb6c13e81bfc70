"""
The one loop that keeps as many requests in flight as the limit allows, over all partitions at once.

Rows are started just ahead of sending, oldest partition first. There is no barrier: the rows of the next partition run
beside the last rows of this one. Knows nothing of prompts, tables or files.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nemo_llm_stage.client.limit import Limit
from nemo_llm_stage.errors import RunError
from nemo_llm_stage.stage.hand import Hand

logger = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")

NUM_OPEN_BEYOND_LIMIT = 1024
"""Rows that may wait for a retry while others are sent: they hold no permit, only memory (a few kB each)."""


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """
    How a scheduler stands.

    Attributes:
        num_runs: Runs with rows that are not started yet.
        num_started: Rows started since the scheduler was made.
        num_open: Rows started and not finished.
        num_waiting: Rows that wait for a permit.
        num_in_flight: Permits held.
    """

    num_runs: int
    num_started: int
    num_open: int
    num_waiting: int
    num_in_flight: int


class Scheduler:
    """
    Starts rows as permits come free. Lives on one event loop.

    Rows started and not finished are at most ``2 · limit + 1024``, whatever the dataset's size, so memory stays flat.

    Args:
        limits: One for each client that rows send their first requests to. `run_row` takes the permits; the scheduler
            only watches, so that a row that sleeps before a retry makes room for another. A row is started if one of
            the limits has room.
    """

    def __init__(self, *limits: Limit) -> None:
        self._limits = limits
        self._runs: deque[_Run[Any, Any]] = deque()
        self._num_open = 0
        self._num_started = 0
        self._starting: set[tuple[_Run[Any, Any], int]] = set()  # created, not yet at the limit
        self._unfinished: set[_Run[Any, Any]] = set()
        for limit in limits:
            limit.on_release = self._start_rows

    async def run(
        self,
        rows: Sequence[R],
        run_row: Callable[[R], Awaitable[T]],
        on_done: Callable[[T], None] | None = None,
        on_start: Callable[[], None] | None = None,
        hand: Hand | None = None,
    ) -> list[T]:
        """
        Return ``[await run_row(row) for row in rows]``, with as many rows at once as the limit allows.

        Args:
            rows: Started in this order.
            run_row: Must not raise for a failed row; what it raises ends this run.
            on_done: Called with each result as it comes; what it raises ends this run.
            on_start: Called as each row is started, or taken back before; what it raises ends this run.
            hand: Gets the rows that `take_back` takes, which are places then; their results are None.

        Raises:
            Exception: The first that `run_row`, `on_done` or `on_start` raised; this run's other rows are cancelled.
            RunError: It was no `Exception`, e.g. `SystemExit`, which would end the event loop.
        """
        if not rows:
            return []
        run = _Run(rows, run_row, on_done, on_start, hand)
        self._runs.append(run)
        self._unfinished.add(run)
        self._start_rows()
        logger.debug("%d rows submitted: %s", len(rows), self.statistics())
        try:
            await run.finished
            if run.error is not None:
                raise run.error
        except BaseException as error:
            self._abandon(run)
            logger.debug("a run of %d rows ended with %r: %s", len(rows), error, self.statistics())
            raise
        finally:
            self._unfinished.discard(run)
        logger.debug("%d rows done: %s", len(rows), self.statistics())
        return run.results

    def take_back(self, *, drops_waiting: bool) -> None:
        """
        Take back the rows of all runs with a hand that are not started.

        Args:
            drops_waiting: Whether to take those too that wait for a permit, if all runs have a hand.
        """
        for run in list(self._unfinished):
            run.take_unstarted()
        if drops_waiting and all(run.hand is not None for run in self._unfinished):
            for limit in self._limits:
                limit.drop_waiting()

    def place_of(self, task: asyncio.Task[Any]) -> tuple[Hand, int] | None:
        """Return the hand of the row that `task` runs and its place there; None for a row without a hand."""
        for run in self._unfinished:
            if run.hand is not None and task in run.tasks:
                return run.hand, run.tasks[task]
        return None

    def drop(self, hand: Hand, places: Collection[int]) -> list[tuple[asyncio.Task[Any], int]]:
        """Cancel rows of a run that are in flight; their results are None. Return their tasks and places."""
        found = [(task, place) for run in self._unfinished if run.hand is hand for task, place in run.tasks.items()]
        dropped = [(task, place) for task, place in found if place in places]
        for task, place in dropped:
            hand.dropped[place] = {}
            task.cancel()
        return dropped

    def statistics(self) -> SchedulerStatistics:
        """Return how many rows are started, open and waiting. May be called from any thread."""
        return SchedulerStatistics(
            num_runs=len(self._runs),
            num_started=self._num_started,
            num_open=self._num_open,
            num_waiting=sum(limit.num_waiting for limit in self._limits) + len(self._starting),
            num_in_flight=sum(limit.in_flight for limit in self._limits),
        )

    def _start_rows(self) -> None:
        num_left = self._num_to_start() if self._runs else 0
        while num_left > 0 and self._runs:
            run = self._runs[0]
            row = run.next_row()
            if row is None:
                self._runs.popleft()
                continue
            self._start_row(run, *row)
            num_left -= 1

    def _num_to_start(self) -> int:
        num_wanted = num_permits = 0
        for limit in self._limits:
            num_wanted = max(num_wanted, limit.num_wanted)
            num_permits += limit.max_concurrent_requests
        return min(num_wanted - len(self._starting), 2 * num_permits + NUM_OPEN_BEYOND_LIMIT - self._num_open)

    def _start_row(self, run: _Run[R, Any], index: int, row: R) -> None:
        self._num_open += 1
        self._num_started += 1
        self._starting.add((run, index))
        task = asyncio.get_running_loop().create_task(self._run_row(run, index, row))
        run.tasks[task] = row
        task.add_done_callback(functools.partial(self._close, run, index))

    async def _run_row(self, run: _Run[R, T], index: int, row: R) -> None:
        self._starting.discard((run, index))
        try:
            run.finish(index, await run.run_row(row))
        except BaseException as error:  # noqa: BLE001 - handed to whoever awaits the run
            if not (isinstance(error, asyncio.CancelledError) and run.leave(row)):
                run.fail(error)

    def _close(self, run: _Run[Any, Any], index: int, task: asyncio.Task[None]) -> None:
        self._starting.discard((run, index))  # still there if it was cancelled before its first step
        del run.tasks[task]
        self._num_open -= 1
        self._start_rows()

    def _abandon(self, run: _Run[Any, Any]) -> None:
        if run in self._runs:
            self._runs.remove(run)
        for task in list(run.tasks):
            task.cancel()


class _Run(Generic[R, T]):
    """The rows of one `Scheduler.run` and their results. `finished` is set when all are there, or at an `error`."""

    def __init__(
        self,
        rows: Sequence[R],
        run_row: Callable[[R], Awaitable[T]],
        on_done: Callable[[T], None] | None,
        on_start: Callable[[], None] | None,
        hand: Hand | None,
    ) -> None:
        self.run_row = run_row
        self.hand = hand
        self._on_start = on_start
        self.results: list[Any] = [None] * len(rows)
        self.error: BaseException | None = None
        self.tasks: dict[asyncio.Task[None], R] = {}
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rows: Iterator[tuple[int, R]] = iter(enumerate(rows))
        self._on_done = on_done
        self._num_left = len(rows)

    def next_row(self) -> tuple[int, R] | None:
        """Return the next row to start and its index; None after the last one, or where the run has ended."""
        if self.finished.done():
            return None
        try:
            row = next(self._rows, None)
            if row is not None and self._on_start is not None:
                self._on_start()
        except BaseException as error:  # noqa: BLE001 - ends this run, not the row of another one that freed the permit
            self.fail(error)
            return None
        return row

    def finish(self, index: int, result: T) -> None:
        """Keep a row's result."""
        self.results[index] = result
        if self._on_done is not None:
            self._on_done(result)
        self._end_row()

    def take_unstarted(self) -> None:
        """Hand back the rows that are not started, and from now on those that leave before they are sent."""
        if self.hand is None or self.finished.done():
            return
        self.hand.is_open = True
        while (row := self.next_row()) is not None:
            self._hand_back(row[1])

    def leave(self, row: R) -> bool:
        """Hand back a row whose wait was cancelled, or drop one; False if it was cancelled with the run."""
        task = asyncio.current_task()
        is_for_good = task is None or task.cancelling()  # whoever ends the run cancels the task, not what it awaits
        if self.hand is None or self.finished.done():
            return False
        if row in self.hand.dropped:
            self._end_row()
            return True
        if not self.hand.is_open or is_for_good:
            return False
        self._hand_back(row)
        return True

    def _hand_back(self, row: Any) -> None:
        assert self.hand is not None
        self.hand.add(row)
        self._end_row()

    def _end_row(self) -> None:
        self._num_left -= 1
        if not self._num_left and not self.finished.done():
            self.finished.set_result(None)

    def fail(self, error: BaseException) -> None:
        """End the run because of `error`, unless it has ended."""
        if self.finished.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self.finished.cancel()
            return
        if not isinstance(error, Exception):
            run_error = RunError(f"a row raised {type(error).__name__}: {error}")
            run_error.__cause__ = error
            error = run_error
        self.error = error
        self.finished.set_result(None)
