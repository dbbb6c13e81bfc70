"""
Connections that have much to read take turns, so that what servers send never holds up the event loop.

Knows asyncio only.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

BUDGET_S = 0.005
"""Time that all connections together take of one turn of the event loop."""


class Turns:
    """
    Runs pieces of work in turn, a few milliseconds at a time.

    A piece of work is a callable that does a small step and returns whether it has more to do.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], bool]] = deque()

    def add(self, work: Callable[[], bool]) -> None:
        """Begin with `work` in the next turn of the running event loop. It must not be waiting already."""
        self._waiting.append(work)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        until_s = time.perf_counter() + BUDGET_S
        while self._waiting:
            has_more = self._waiting[0]()
            if has_more:
                self._waiting.rotate(-1)
            else:
                self._waiting.popleft()
            if time.perf_counter() >= until_s:
                break
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
