"""
How many requests are in flight at once: a limit to enter, first come first served.

Belongs to one event loop. Knows nothing of what is done under a permit.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from nemo_llm_stage.client.throttle import Allowance

T = TypeVar("T")

Permit: TypeAlias = AbstractAsyncContextManager[object]
"""What is entered to hold a permit."""

HELD: ContextVar[Permit | None] = ContextVar("HELD", default=None)
"""The permit under which a method is called that does not take one; None for none."""


@dataclass(frozen=True, slots=True)
class LimitStatistics:
    """
    How a limit stands.

    Attributes:
        max_concurrent_requests: The cap.
        in_flight: Permits held now; above the cap for a while after it was lowered.
        num_waiting: Requests that wait for a permit.
    """

    max_concurrent_requests: int
    in_flight: int
    num_waiting: int


@dataclass(frozen=True, slots=True)
class Problem:
    """
    Why nobody gets a permit.

    Attributes:
        text: For people.
        since: Unix seconds.
    """

    text: str
    since: float


class Limit:
    """
    At most `max_concurrent_requests` holders at a time; waiters get their permits in the order in which they came.

    ``async with limit.permit():`` takes a permit and gives it back. A waiter may be cancelled at any moment; no permit
    is lost.

    Attributes:
        max_concurrent_requests: The cap. Change it with `resize`.
        in_flight: Permits held now.
        is_paused: Whether no permits are given. Change it with `pause` and `resume`.
        allowance: Counts the permits, and may hold them back; None for neither.
        problem: Why nobody can send anything, for people; None where somebody can.
        on_release: Called on the loop after each permit that comes back; None for nothing.
    """

    def __init__(self, max_concurrent_requests: int) -> None:
        self.max_concurrent_requests = max_concurrent_requests
        self.in_flight = 0
        self.is_paused = False
        self.allowance: Allowance | None = None
        self.problem: Problem | None = None
        self.on_release: Callable[[], None] | None = None
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a permit."""
        return len(self._queue)

    @property
    def num_ahead(self) -> int:
        """Requests that should wait, so that permits that come free are taken at once."""
        return max(4, self.max_concurrent_requests // 4)

    @property
    def num_wanted(self) -> int:
        """Requests that should come now; below 0 where more wait than are needed."""
        return self.num_ahead + self.max_concurrent_requests - self.in_flight - self.num_waiting

    @property
    def _value(self) -> int:
        """Free permits, by asyncio's name: tests written for NeMo Curator's clients read it of their semaphore."""
        return max(0, self.max_concurrent_requests - self.in_flight)

    def statistics(self) -> LimitStatistics:
        """Return how the limit stands."""
        return LimitStatistics(self.max_concurrent_requests, self.in_flight, self.num_waiting)

    def resize(self, max_concurrent_requests: int) -> None:
        """
        Change the cap. A higher one lets waiters in at once; a lower one takes effect as permits come back.

        Args:
            max_concurrent_requests: The new cap, at least 1.
        """
        self.max_concurrent_requests = self.checked(max_concurrent_requests)
        self.wake()

    @staticmethod
    def checked(max_concurrent_requests: int) -> int:
        """Return a cap that can be one; raises ValueError for any other."""
        if max_concurrent_requests < 1:
            raise ValueError(f"max_concurrent_requests is {max_concurrent_requests}; it must be at least 1.")
        return max_concurrent_requests

    def pause(self) -> None:
        """Give no permits until `resume`. Those that are held stay."""
        self.is_paused = True

    def resume(self) -> None:
        """Give permits again."""
        self.is_paused = False
        self.wake()

    def wake(self) -> None:
        """Let in who may enter now."""
        self._let_in()
        if self.on_release is not None:
            self.on_release()

    def drop_waiting(self) -> None:
        """Cancel the wait of everybody who waits for a permit."""
        for turn in self._queue:
            turn.cancel()

    def note_unsent(self) -> None:
        """Take back from the allowance a permit under which nothing was sent."""
        if self.allowance is not None:
            self.allowance.note_sends(-1)

    def permit(self, after: Permit | None = None) -> Permit:
        """
        Return what to enter for a permit.

        Args:
            after: The permit under which the same request failed before; None for its first send.
        """
        return self

    async def __aenter__(self) -> None:
        """Wait for a permit."""
        if not self._queue and self._has_permit():
            self._take()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the permit came in the same tick
                self.note_unsent()
                self._take_back()
            elif turn in self._queue:  # else `_let_in` has dropped it
                self._queue.remove(turn)
            raise

    async def __aexit__(self, *exc: object) -> None:
        """Give the permit back: to the longest waiting at once."""
        self._take_back()
        if self.on_release is not None:
            self.on_release()

    def _has_permit(self) -> bool:
        return self.in_flight < self.max_concurrent_requests and self._may_send()

    def _may_send(self) -> bool:
        return not self.is_paused and (self.allowance is None or self.allowance.is_left)

    def _take(self) -> None:
        self.in_flight += 1
        if self.allowance is not None:
            self.allowance.note_sends()

    def _take_back(self) -> None:
        self.in_flight -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._queue and self._has_permit():
            turn = self._queue.popleft()
            if not turn.done():
                self._take()
                turn.set_result(None)


class LoopLocal(Generic[T]):
    """
    One value per running event loop, made at its first use there.

    Locks and connections belong to the loop they were made on; a client used from several loops, one after another,
    needs fresh ones for each.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, T] = weakref.WeakKeyDictionary()
        self._last: tuple[weakref.ref[asyncio.AbstractEventLoop], T] | None = None

    def get(self) -> T:
        """
        Return this loop's value.

        Raises:
            RuntimeError: No event loop is running.
        """
        loop = asyncio.get_running_loop()
        last = self._last
        if last is not None and last[0]() is loop:
            return last[1]
        value = self._values.get(loop)
        if value is None:
            value = self._values[loop] = self._make()
        self._last = weakref.ref(loop), value
        return value

    def values(self) -> list[T]:
        """Return the values of all loops that still exist."""
        return list(self._values.values())

    def pop(self) -> T | None:
        """Return this loop's value if there is one, and forget it."""
        self._last = None
        return self._values.pop(asyncio.get_running_loop(), None)
