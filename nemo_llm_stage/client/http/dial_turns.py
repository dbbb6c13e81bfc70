"""
Connections to one server are begun a few hundred at a time: more at once than it takes are lost in its queue.

To all servers together a few hundred more are begun within a second: so many at once that this process needs longer for
them than a connection may take would all be given up, though the servers had taken them. Knows asyncio only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MAX_DIALS = 256
"""Begun at once. Servers keep some 100 to 4,096 that they have not taken; what is above that begins anew after 1, 3 and
7 s (TCP), which is longer than a connection should take."""

MAX_STARTS = 512
"""Begun at once to all servers. One takes 0.5 ms of CPU with its first request (benchmarks/bench_in_flight.py)."""

START_S = 1.0
"""A connection that is not there after so long waits for its server, not for this process: it lets others begin."""


class Starts:
    """The connections to all servers of one event loop that are being begun."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(MAX_STARTS)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold a place within the block, or for `START_S` if that is shorter."""
        await self._free.acquire()
        place = _Place(self._free)
        timer = asyncio.get_running_loop().call_later(START_S, place.leave)
        try:
            yield
        finally:
            timer.cancel()
            place.leave()


class _Place:
    """One of so many; may be left twice."""

    __slots__ = ("_free",)

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free: asyncio.Semaphore | None = free

    def leave(self) -> None:
        free, self._free = self._free, None
        if free is not None:
            free.release()


class DialTurns:
    """
    The turns to begin a connection to one server.

    Args:
        starts: Of all servers.
    """

    def __init__(self, starts: Starts) -> None:
        self._starts = starts
        self._free = asyncio.Semaphore(MAX_DIALS)
        self._num_connected = 0

    @asynccontextmanager
    async def turn(self, timeout_s: float) -> AsyncIterator[None]:
        """
        Hold a turn within the block.

        Raises:
            TimeoutError: For so long there was none, and nobody else has been connected either.
        """
        await self._wait(timeout_s)
        try:
            async with self._starts.turn():
                yield
            self._num_connected += 1
        finally:
            self._free.release()

    async def _wait(self, timeout_s: float) -> None:
        num_before = -1
        while self._free.locked() and num_before != self._num_connected:
            num_before = self._num_connected
            try:
                async with asyncio.timeout(timeout_s):
                    await self._free.acquire()
            except TimeoutError:
                continue
            return
        if self._free.locked():
            raise TimeoutError
        await self._free.acquire()
