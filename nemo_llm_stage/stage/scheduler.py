"""
The one loop that keeps as many requests in flight as the limit allows, over all partitions at once.

Rows are started just ahead of sending, oldest partition first. There is no barrier: the rows of the next partition run
beside the last rows of this one. Knows rows as anything that can be asked; knows nothing of prompts, tables or files.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from nemo_llm_stage.client.limit import Limit

R = TypeVar("R")
T = TypeVar("T")

NUM_OPEN_BEYOND_LIMIT = 1024
"""Rows that may wait for a retry while others are sent: they hold no permit, only memory (a few kB each)."""


class Scheduler:
    """
    Starts rows as permits come free. Lives on one event loop.

    Started and unfinished rows are at most ``2 · limit + 1024``, whatever the dataset's size, so memory stays flat.

    Args:
        limits: Those under which rows make their first requests, one for each client. A row takes its permits inside
            of `ask`; the scheduler only watches, so that a row that sleeps before a retry makes room for another. A
            row is started where one of the limits has room.

    Attributes:
        num_started: Rows started since there is a scheduler.
    """

    def __init__(self, *limits: Limit) -> None:
        self._limits = limits
        self._runs: deque[_Run[Any, Any]] = deque()
        self._num_open = 0
        self.num_started = 0
        self._starting: set[asyncio.Task[None]] = set()  # created, not yet at the limit
        self._max_open = 2 * sum(limit.max_concurrent_requests for limit in limits) + NUM_OPEN_BEYOND_LIMIT
        for limit in limits:
            limit.on_release = self._start_rows

    async def run(
        self, rows: Sequence[R], ask: Callable[[R], Awaitable[T]], on_done: Callable[[T], None] | None = None
    ) -> list[T]:
        """
        Return ``[await ask(row) for row in rows]``, asked as the limit allows.

        Args:
            rows: Asked in this order.
            ask: Must not raise for a failed row; what it raises ends this run.
            on_done: Called with each result as it comes, in the order of coming.

        Raises:
            Exception: The first that `ask` raised; this run's other rows are cancelled.
        """
        if not rows:
            return []
        run = _Run(rows, ask, on_done)
        self._runs.append(run)
        self._start_rows()
        try:
            await run.finished
        except BaseException:
            self._abandon(run)
            raise
        return run.results

    def _start_rows(self) -> None:
        while self._runs and self._num_open < self._max_open:
            if not any(map(self._has_room, self._limits)):
                return
            run = self._runs[0]
            row = next(run.rows, None)
            if row is None:
                self._runs.popleft()
                continue
            self._num_open += 1
            self.num_started += 1
            task = asyncio.get_running_loop().create_task(self._ask(run, *row))
            self._starting.add(task)
            run.tasks.add(task)
            task.add_done_callback(run.tasks.discard)
            task.add_done_callback(self._close)

    def _has_room(self, limit: Limit) -> bool:
        # Enough rows stand at the limit to fill every permit that one turn of the event loop may free.
        num_ahead = max(4, limit.max_concurrent_requests // 4)
        return limit.num_waiting + len(self._starting) < num_ahead + limit.max_concurrent_requests - limit.in_flight

    async def _ask(self, run: _Run[R, T], index: int, row: R) -> None:
        self._starting.discard(asyncio.current_task())
        try:
            result = await run.ask(row)
        except BaseException as error:  # noqa: BLE001 - handed to whoever awaits the run
            run.fail(error)
        else:
            run.finish(index, result)

    def _close(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)  # still there where it was cancelled before its first step
        self._num_open -= 1
        self._start_rows()

    def _abandon(self, run: _Run[Any, Any]) -> None:
        if run in self._runs:
            self._runs.remove(run)
        for task in run.tasks:
            task.cancel()


class _Run(Generic[R, T]):
    """The rows of one `Scheduler.run` and what became of them."""

    def __init__(
        self, rows: Sequence[R], ask: Callable[[R], Awaitable[T]], on_done: Callable[[T], None] | None
    ) -> None:
        self.rows: Iterator[tuple[int, R]] = iter(enumerate(rows))
        self.ask = ask
        self.results: list[Any] = [None] * len(rows)
        self.tasks: set[asyncio.Task[None]] = set()
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_done = on_done
        self._num_left = len(rows)

    def finish(self, index: int, result: T) -> None:
        self.results[index] = result
        if self._on_done is not None:
            self._on_done(result)
        self._num_left -= 1
        if not self._num_left and not self.finished.done():
            self.finished.set_result(None)

    def fail(self, error: BaseException) -> None:
        if self.finished.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self.finished.cancel()
        else:
            self.finished.set_exception(error)
