"""
Connections to one server are begun a few hundred at a time: more at once than it takes are lost in its queue.

Knows asyncio only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MAX_DIALS = 256
"""Begun at once. Servers keep some 100 to 4,096 that they have not taken; what is above that begins anew after 1, 3 and
7 s (TCP), which is longer than a connection should take."""


class DialTurns:
    """The turns to begin a connection to one server."""

    def __init__(self) -> None:
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
