"""Clocks for clients: one runs faster than the machine's, with one all pauses end together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class FastClock:
    """Ten seconds in one."""

    def monotonic(self) -> float:
        return 10 * time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 10)


class PatientClock:
    """Who sleeps wakes up when `is_over`, however long that takes; after half a minute in any case."""

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        until_s = time.monotonic() + 30
        while not self._is_over() and time.monotonic() < until_s:  # noqa: ASYNC110 (it is told by a server)
            await asyncio.sleep(0.05)
