"""How long the event loop was held up while something ran: a watchdog that wakes up all the time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from types import TracebackType
from typing import Self

MAX_LAG_S = 0.05
"""Longest time for which what a server sends may hold up the event loop."""


class LoopLag:
    """
    ``async with LoopLag() as lag: …``, then `worst_s`: the longest time the loop did not come round.

    CPU time of this thread is counted rather than time: other programs on the machine hold up every loop. What the
    tests before have left behind is kept from the garbage collector, which would hold it up too.
    """

    def __init__(self) -> None:
        self.worst_s = 0.0

    async def __aenter__(self) -> Self:
        gc.collect()
        gc.freeze()
        self._task = asyncio.create_task(self._watch())
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.sleep(0)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        gc.unfreeze()

    async def _watch(self) -> None:
        while True:
            before_s = time.thread_time()
            await asyncio.sleep(0)
            self.worst_s = max(self.worst_s, time.thread_time() - before_s)
