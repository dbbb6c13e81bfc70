"""
Asks the servers how they stand, about once a second, on the client's own event loop and connections.

What goes wrong here is never a request's failure: a server that does not tell is followed by what it answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

from nemo_llm_stage.client.clock import Clock
from nemo_llm_stage.client.governor.governed import Governed
from nemo_llm_stage.client.governor.governor import TICK_S
from nemo_llm_stage.client.governor.metrics import ServerLoad, parse_load
from nemo_llm_stage.client.http.transport import HTTPResponse
from nemo_llm_stage.client.limit import Limit
from nemo_llm_stage.client.open_files import OTHER_FILES, open_file_limits
from nemo_llm_stage.errors import LLMStageError

logger = logging.getLogger(__name__)

POLL_TIMEOUT_S = 4.0
MAX_POLL_PAUSE_S = 300.0
"""A server that has no metrics is asked again after pauses that double up to this."""

MAX_WAIT_S = 0.25
"""A tick waits so long for the metrics; later ones count at the next tick."""

FIRST_TICKS_S = 0.5
NUM_FIRST_TICKS = 4
IDLE_S = 10.0
"""Without a request for so long, nothing is asked."""

HEALTH_KEPT_S = 2.0
"""What ``/health`` said counts for so long."""


FILES_SHARE = 0.6
"""Of the other files; from there on the limits do not grow. At the start they double."""


class Get(Protocol):
    """Sends a GET."""

    async def __call__(self, url: str, timeout_s: float) -> HTTPResponse:
        """
        Return the response to a GET of `url`.

        Raises:
            LLMStageError: There was none.
        """


class Poller:
    """
    Ticks the governors of a client's servers while requests are in flight, and asks the servers for their metrics.

    Args:
        get: The client's way to send a GET.
        clock: Time and sleep.
        num_waiting: Returns how many requests wait for a permit.
    """

    def __init__(self, get: Get, clock: Clock, num_waiting: Callable[[], int]) -> None:
        self._get = get
        self._clock = clock
        self._num_waiting = num_waiting
        self._sources: list[_Source] = []
        self._task: asyncio.Task[None] | None = None
        self._used_at_s = 0.0

    def govern(self, base_url: str, limit: Limit) -> Governed:
        """Return what governs the limit of the server at `base_url`."""
        governed = Governed(base_url, limit, self._clock, self._note_use)
        source = _Source(governed, self._get, self._clock)
        governed.is_healthy = source.is_healthy
        self._sources.append(source)
        return governed

    def close(self) -> None:
        """Stop until the next request, if the running event loop is the one that this polls on."""
        if self._task is None or self._task.get_loop() is not asyncio.get_running_loop():
            return
        self._task.cancel()
        self._task = None
        for source in self._sources:
            source.close()

    def _note_use(self) -> None:
        self._used_at_s = self._clock.monotonic()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        num_ticks = 0
        cpu_s, wall_s = time.thread_time(), time.monotonic()
        while self._clock.monotonic() - self._used_at_s < IDLE_S or any(s.governed.in_flight for s in self._sources):
            num_ticks += 1
            await self._clock.sleep(FIRST_TICKS_S if num_ticks <= NUM_FIRST_TICKS else TICK_S)
            polls = [poll for source in self._sources if (poll := source.poll()) is not None]
            if polls:
                await asyncio.wait(polls, timeout=MAX_WAIT_S)
            cpu_before_s, wall_before_s = cpu_s, wall_s
            cpu_s, wall_s = time.thread_time(), time.monotonic()
            busy = (cpu_s - cpu_before_s) / max(1e-6, wall_s - wall_before_s)
            num_in_flight = sum(source.governed.in_flight for source in self._sources)
            is_out_of_files = num_in_flight > FILES_SHARE * (open_file_limits()[0] - OTHER_FILES)
            for source in self._sources:
                source.governed.tick(self._num_waiting(), busy, is_out_of_files=is_out_of_files)


class _Source:
    """One server's ``/metrics`` and ``/health``."""

    def __init__(self, governed: Governed, get: Get, clock: Clock) -> None:
        self.governed = governed
        self._get = get
        self._clock = clock
        root = governed.url.removesuffix("/v1")
        self._urls = [f"{root}/metrics", f"{governed.url}/metrics"] if root != governed.url else [f"{root}/metrics"]
        self._health_url = f"{root}/health"
        self._polling: asyncio.Task[None] | None = None
        self._pause_s = TICK_S
        self._next_s = float("-inf")
        self._is_healthy = False
        self._asked_at_s = float("-inf")

    def poll(self) -> asyncio.Task[None] | None:
        """Ask for the metrics, if the last question is answered and requests are in flight; return what reads them."""
        is_due = self._clock.monotonic() >= self._next_s and self.governed.in_flight > 0
        if is_due and (self._polling is None or self._polling.done()):
            self._polling = asyncio.get_running_loop().create_task(self._read())
        return self._polling

    async def is_healthy(self) -> bool:
        """Whether ``/health`` says that the server is up; asked at most once in `HEALTH_KEPT_S`."""
        now_s = self._clock.monotonic()
        if now_s - self._asked_at_s >= HEALTH_KEPT_S:
            self._asked_at_s = now_s
            response = await self._response(self._health_url)
            self._is_healthy = response is not None and response.status == HTTPStatus.OK
        return self._is_healthy

    def close(self) -> None:
        """Let go of what waits on the event loop."""
        if self._polling is not None:
            self._polling.cancel()
        self.governed.close()

    async def _read(self) -> None:
        in_flight = self.governed.in_flight
        for url in list(self._urls):
            load = await self._load(url)
            if load is not None:
                self._urls.sort(key=lambda known: known != url)
                self._pause_s, self._next_s = TICK_S, float("-inf")
                self.governed.note_load(load, min(in_flight, self.governed.in_flight))
                return
        self._pause_s = min(MAX_POLL_PAUSE_S, 2 * self._pause_s)
        self._next_s = self._clock.monotonic() + self._pause_s

    async def _load(self, url: str) -> ServerLoad | None:
        response = await self._response(url)
        if response is None or response.status != HTTPStatus.OK:
            return None
        return parse_load(response.body)

    async def _response(self, url: str) -> HTTPResponse | None:
        try:
            return await self._get(url, POLL_TIMEOUT_S)
        except LLMStageError as error:
            logger.debug("%s: %s", url, error)
            return None
