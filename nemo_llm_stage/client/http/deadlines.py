"""
One timer for all exchanges of an event loop.

A timer for each exchange would cost a tenth of the exchange: nearly all are cancelled. Knows asyncio only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Protocol

SLACK_S = 0.01
"""A deadline may be noticed so much late, so that many deadlines close together cost one look."""


class Timed(Hashable, Protocol):
    """What has a deadline."""

    def due_s(self) -> float:
        """Return the loop time at which `time_out` is to be called, as things are now; it may move later."""

    def time_out(self, now_s: float) -> None:
        """Take note that the deadline is over. Called once."""


class Deadlines:
    """Calls `time_out` of whatever is still in here at its deadline. Belongs to one event loop."""

    __slots__ = ("_planned_s", "_timed", "_timer")

    def __init__(self) -> None:
        self._timed: dict[Timed, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._planned_s = float("inf")

    def add(self, timed: Timed, due_s: float) -> None:
        """Watch `timed`, whose deadline is at `due_s` now."""
        self._timed[timed] = None
        if due_s < self._planned_s:
            self._plan(due_s)

    def discard(self, timed: Timed) -> None:
        """Forget `timed`. It may be forgotten already."""
        self._timed.pop(timed, None)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._planned_s = float("inf")

    def _plan(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._planned_s = due_s
        self._timer = asyncio.get_running_loop().call_at(due_s, self._look)

    def _look(self) -> None:
        self._timer, self._planned_s = None, float("inf")
        now_s, next_s = asyncio.get_running_loop().time(), float("inf")
        for timed in list(self._timed):
            due_s = timed.due_s()
            if due_s <= now_s:
                del self._timed[timed]
                timed.time_out(now_s)
            else:
                next_s = min(next_s, due_s)
        if self._timed:
            self._plan(max(next_s, now_s + SLACK_S))
