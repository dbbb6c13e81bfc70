"""
How many requests are in flight: an object to enter, first come first served.

Knows one event loop; knows nothing of what is done under a permit.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Limit:
    """
    At most `max_in_flight` holders at a time, in the order they came.

    ``async with limit:`` takes one permit and gives it back. Cancelling a waiter costs no permit.

    Attributes:
        max_in_flight: The cap.
        in_flight: Permits held now.
        on_release: Called after each permit that comes back, on the loop; None for nothing.
    """

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self.on_release: Callable[[], None] | None = None
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def num_waiting(self) -> int:
        """Holders-to-be: asked for a permit and not given one yet."""
        return len(self._queue)

    async def __aenter__(self) -> None:
        """Wait for a permit."""
        if self.in_flight < self.max_in_flight and not self._queue:
            self.in_flight += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # given a permit in the same tick
                self._hand_over()
            else:
                self._queue.remove(turn)
            raise

    async def __aexit__(self, *exc: object) -> None:
        """Give the permit back, at once to the longest waiting."""
        self._hand_over()
        if self.on_release is not None:
            self.on_release()

    def _hand_over(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.in_flight -= 1


class LoopLocal(Generic[T]):
    """
    One value per running event loop, made when first asked for there.

    Locks and connections belong to the loop they were made on; a client that is used from several loops one after
    another needs fresh ones for each.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, T] = weakref.WeakKeyDictionary()

    def get(self) -> T:
        """
        Return this loop's value.

        Raises:
            RuntimeError: No event loop is running.
        """
        loop = asyncio.get_running_loop()
        try:
            return self._values[loop]
        except KeyError:
            value = self._values[loop] = self._make()
            return value

    def pop(self) -> T | None:
        """Return this loop's value if there is one, and forget it."""
        return self._values.pop(asyncio.get_running_loop(), None)
