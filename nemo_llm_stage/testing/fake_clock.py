"""
A clock for tests: hours pass in no time, always in the same order.

Knows nothing of what is being timed.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools

_NUM_TURNS_IDLE = 20
"""Turns of the event loop that everything else may take before the time jumps to the next sleeper."""

_RESOLUTION_S = 1e-6
"""The shortest sleep: even a remainder from rounding must move the time."""


class FakeClock:
    """
    A `Clock` whose time moves only when every task sleeps, or when `advance` is called.

    Sleepers wake in the order of their times. Real input and output is not waited for: where a test talks to a real
    server, use ``jumps=False`` and `advance`.

    Args:
        jumps: Whether the time jumps to the next sleeper by itself, once the other tasks had some turns of the loop.

    Attributes:
        now: Seconds; starts at 0.
        sleeps: The seconds of each sleep so far, in the order of their starts.
    """

    def __init__(self, *, jumps: bool = True) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []
        self._jumps = jumps
        self._numbers = itertools.count()
        self._driver: asyncio.Task[None] | None = None
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        """Return `now`."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Return once `seconds` have passed on this clock."""
        self.sleeps.append(seconds)
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wakes: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sleeper = (self.now + max(seconds, _RESOLUTION_S), next(self._numbers), wakes)
        heapq.heappush(self._sleepers, sleeper)
        if self._jumps and (self._driver is None or self._driver.done()):
            self._driver = asyncio.get_running_loop().create_task(self._drive())
        try:
            await wakes
        finally:
            wakes.cancel()

    async def advance(self, seconds: float) -> None:
        """Add `seconds` to the time. Sleepers wake one after another, each with some turns of the loop."""
        end = self.now + seconds
        while self._next_wake() <= end:
            self._wake_next()
            await _turns()
        self.now = end
        await _turns()

    async def _drive(self) -> None:
        """Wake one sleeper after another until none is left."""
        await _turns()
        while self._next_wake() < float("inf"):
            self._wake_next()
            await _turns()

    def _next_wake(self) -> float:
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else float("inf")

    def _wake_next(self) -> None:
        self.now, _, wakes = heapq.heappop(self._sleepers)
        wakes.set_result(None)


async def _turns() -> None:
    for _ in range(_NUM_TURNS_IDLE):
        await asyncio.sleep(0)
