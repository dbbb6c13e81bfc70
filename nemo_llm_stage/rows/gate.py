"""
Holds requests back while a server refuses connections, and lets one at a time find out whether it is back.

Lives on one event loop. Knows time; knows nothing of requests or errors.
"""

from __future__ import annotations

import asyncio
from typing import Any

from nemo_llm_stage.client.clock import Clock

FIRST_PROBE_AFTER_S = 0.1
MAX_PROBE_PAUSE_S = 5.0
"""While a server refuses connections one request asks whether it is back: after 0.1 s, 0.2 s … and then every 5 s."""


class Gate:
    """
    Open while the server is up.

    Args:
        clock: Time and sleep.

    Attributes:
        is_closed: Whether the server is down.
        num_outages: Times that it went down.
        next_probe_monotonic_s: When the next request is let through, while it is down.
    """

    def __init__(self, clock: Clock) -> None:
        self.is_closed = False
        self.num_outages = 0
        self.next_probe_monotonic_s = 0.0
        self._clock = clock
        self._pause_s = FIRST_PROBE_AFTER_S
        self._is_reached = False
        self._prober: asyncio.Task[Any] | None = None
        self._last_prober: asyncio.Task[Any] | None = None
        self._changes: dict[asyncio.Future[None], None] = {}

    @property
    def is_down(self) -> bool:
        """Whether the server is down."""
        return self.is_closed

    def note_refused(self, *, is_probe: bool) -> bool:
        """Remember a refused connection: the server is down. Return whether that tells anything new."""
        if self.is_closed and not is_probe:
            return False
        self.num_outages += not self.is_closed or self._is_reached
        self._plan_probe(is_first=not self.is_closed)
        self.is_closed, self._is_reached = True, False
        return True

    def note_death(self) -> None:
        """Remember that the server may have died under a request: it is down unless a probe is answered."""
        self._plan_probe(is_first=not self._is_reached)
        self.is_closed = self._is_reached = True

    def open(self) -> None:
        """Let all requests through: the server is up."""
        self.is_closed = self._is_reached = False
        self._tell()

    async def wait(self, give_up_at_monotonic_s: float) -> bool:
        """
        Return once the server may be up.

        While it is down, one request at a time, the probe, is let through after a pause; all others wait for its
        outcome. They take turns.

        Returns:
            True for the probe and for a request whose time is over: both are sent though the server is down.
        """
        while self.is_closed:
            if self._clock.monotonic() >= give_up_at_monotonic_s:
                return True
            if self._prober is not None or (self._last_prober is asyncio.current_task() and self._changes):
                await self._change()
                continue
            self._prober = self._last_prober = asyncio.current_task()
            try:
                await self._pause_before_probe(give_up_at_monotonic_s)
            except BaseException:
                self.end_probe()
                raise
            if self.is_closed:
                return True
            self.end_probe()
        return False

    def end_probe(self) -> None:
        """Let another request be the probe, if the running task was it."""
        if self._prober is asyncio.current_task():
            self._prober = None
            self._tell()

    def _plan_probe(self, *, is_first: bool) -> None:
        self._pause_s = FIRST_PROBE_AFTER_S if is_first else min(2 * self._pause_s, MAX_PROBE_PAUSE_S)
        self.next_probe_monotonic_s = self._clock.monotonic() + self._pause_s

    async def _pause_before_probe(self, give_up_at_monotonic_s: float) -> None:
        """Return when the next probe is due, or as soon as the server answers another request."""
        due = min(self.next_probe_monotonic_s, give_up_at_monotonic_s)
        sleep = asyncio.ensure_future(self._clock.sleep(max(0.0, due - self._clock.monotonic())))
        opened = asyncio.ensure_future(self._opened())
        try:
            await asyncio.wait({sleep, opened}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            opened.cancel()

    async def _opened(self) -> None:
        while self.is_closed:
            await self._change()

    async def _change(self) -> None:
        """Return when the server comes up or a probe ends."""
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes[change] = None
        try:
            await change
        finally:
            del self._changes[change]

    def _tell(self) -> None:
        for change in self._changes:
            if not change.done():
                change.set_result(None)
