"""
One server's governor at work: what is sent there is counted and paced, what comes back moves the limit.

Lives on one event loop. Knows limits and outcomes; knows nothing of connections.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from nemo_llm_stage.client.clock import Clock
from nemo_llm_stage.client.generation import GenerationConfig
from nemo_llm_stage.client.governor.chance import Chance
from nemo_llm_stage.client.governor.expected import ExpectedTokens
from nemo_llm_stage.client.governor.ghosts import Ghosts
from nemo_llm_stage.client.governor.governor import START_LIMIT, Governor, GovernorSettings
from nemo_llm_stage.client.governor.metrics import ServerLoad
from nemo_llm_stage.client.governor.pace import Pace
from nemo_llm_stage.client.governor.rate_headers import RATE_HEADERS, parse_rate_windows
from nemo_llm_stage.client.governor.sending import Sending
from nemo_llm_stage.client.governor.signals import LimitStatus, Signals
from nemo_llm_stage.client.governor.timeouts import SLOW_S, Timeouts
from nemo_llm_stage.client.limit import Limit
from nemo_llm_stage.core import Usage

logger = logging.getLogger(__name__)

PROMPT_WORK = 0.2
"""Work of a prompt token, in tokens of the answer: many of them are computed at once."""

MIN_PAUSE_S = 0.001
"""Waiting for less time would be waiting for a rounding error."""

LOGGED_AFTER_S = 60.0
"""The log gets at most one line of the level info in so long."""


class Governed:
    """
    A limit that follows its server.

    Args:
        name: The server's base URL.
        limit: Moved by `tick` and by refusals.
        clock: Time and sleep.
        on_use: Called before each request.

    Attributes:
        url: The server's base URL.
        is_healthy: Asks whether the server says that it is up.
        governor: Finds the limit.
        tokens_in_flight: Expected tokens of the requests in flight.
        on_ghosts: Called with the time before which open requests are ghosts; sends them again and returns how many.
        slowest_s: Returns what nearly every answer took at most; None before the first.
        num_ghosts: Requests that the server had lost.
        clock: Time and sleep.
    """

    def __init__(self, name: str, limit: Limit, clock: Clock, on_use: Callable[[], None]) -> None:
        self.url = name
        self.is_healthy: Callable[[], Awaitable[bool]] = _is_unknown
        start = limit.max_concurrent_requests  # less than usual for one of several workers
        self.governor = Governor(name, GovernorSettings(start=start, share=min(1.0, start / START_LIMIT)))
        self.tokens_in_flight = 0.0
        self.on_ghosts: Callable[[float], int] | None = None
        self.slowest_s: Callable[[], float | None] = _never
        self.num_ghosts = 0
        self._ghosts = Ghosts()
        self._timeouts = Timeouts()
        self._limit = limit
        self.clock = clock
        self._on_use = on_use
        self._pace = Pace()
        self._chance = Chance()
        self._expected = ExpectedTokens()
        self._num_counted = self._peak = 0
        self._is_token_bound = False
        self._load: ServerLoad | None = None
        self._in_flight_then = 0
        self._waker: asyncio.Task[None] | None = None
        self._logged_at_s = float("-inf")
        self._logged_limit = self.governor.limit

    @property
    def status(self) -> LimitStatus:
        """How the limit stands, and why."""
        status = self.governor.status
        if self._chance.share is None:
            return status
        refused = f"{self._chance.share:.0%} of the requests are refused, however few are sent"
        return replace(status, reason=f"{status.reason}; {refused}")

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return self._limit.in_flight

    @property
    def is_open(self) -> bool:
        """Whether the pace and the tokens in flight allow another request; where the pace does not, it will wake."""
        most = self.governor.max_tokens
        if most is None and not self._pace.holds_back:
            return True
        uncounted = max(0, self._limit.in_flight - self._num_counted)  # permits that were given a moment ago
        expected = self.tokens_in_flight * (1 + uncounted / max(1, self._num_counted))
        if most is not None and self._limit.in_flight and expected >= most:
            self._is_token_bound = True
            return False
        wait_s = self._pace.wait_s(self.clock.monotonic(), uncounted)
        if wait_s <= 0:
            return True
        if self._waker is None:
            self._waker = asyncio.get_running_loop().create_task(self._wake_after(max(MIN_PAUSE_S, wait_s)))
        return False

    def sending(self, num_bytes: int, config: GenerationConfig) -> Sending:
        """Return what to enter while a request is in flight."""
        return Sending(self, num_bytes, config)

    def note_load(self, load: ServerLoad, in_flight: int) -> None:
        """
        Take a reading of the server's metrics, for the next `tick`.

        Args:
            load: The reading.
            in_flight: Requests that were in flight all the time from the question to the answer.
        """
        self._load, self._in_flight_then = load, in_flight
        sent_before_s = self._ghosts.sent_before(load, in_flight, self.clock.monotonic(), self.slowest_s() or 0.0)
        if sent_before_s is not None and self.on_ghosts is not None:
            num = self.on_ghosts(sent_before_s)
            self.num_ghosts += num
            if num:
                logger.warning("%s has lost %d open requests: it shows none; they are sent again", self.url, num)

    def timeout_s(self, config: GenerationConfig) -> float | None:
        """Return the seconds that a request gets; None for the client's own."""
        return self._timeouts.of(config)

    def tick(self, num_waiting: int, client_busy: float, *, is_out_of_files: bool = False) -> None:
        """
        Move the limit. Called about once a second.

        Args:
            num_waiting: Requests that wait for a permit.
            client_busy: Share of a core that this thread used since the last tick.
            is_out_of_files: Whether this process may not open many more connections.
        """
        load, self._load = self._load, None
        now_s = self.clock.monotonic()
        signals = Signals(
            now_s,
            self.in_flight if load is None else self._in_flight_then,
            max(self._peak, self.in_flight),
            self.tokens_in_flight,
            num_waiting,
            self._is_token_bound,
            load,
            client_busy,
            is_out_of_files,
        )
        self._peak, self._is_token_bound = self.in_flight, False
        if self._chance.trial_per_s is not None:
            self._chance.tick(now_s, self.taken[0], self.in_flight)
            if self._chance.trial_per_s is None:
                self._pace.set_trial(None, now_s)
        self.governor.tick(signals)
        self._follow(now_s)

    def pin(self, limit: int) -> None:
        """Fix the limit."""
        self.governor.pin(limit)
        self._follow(self.clock.monotonic())

    def close(self) -> None:
        """Let go of what waits on the event loop."""
        if self._waker is not None:
            self._waker.cancel()
            self._waker = None

    def begin(self, num_bytes: int, config: GenerationConfig, now_s: float) -> float:
        """Take note of a request that is sent; return the tokens that it is expected to hold."""
        self._on_use()
        cost = self._expected.of(num_bytes, config, self.governor.hit_rate)
        self.tokens_in_flight += cost
        self._num_counted += 1
        if self._limit.in_flight > self._peak:
            self._peak = self._limit.in_flight
        self._pace.note_sent(now_s, cost)
        return cost

    @property
    def taken(self) -> tuple[float, float]:
        """Requests and tokens that were sent so far."""
        return self._pace.taken

    def end(self, cost: float) -> None:
        """Take note that a request is not in flight any more."""
        self._num_counted -= 1
        self.tokens_in_flight = self.tokens_in_flight - cost if self._num_counted else 0.0

    def note_answer(self, sending: Sending, usage: Usage | None) -> None:
        """Take note of an answer's numbers."""
        tokens = output_tokens = 1.0
        latency_s = self.clock.monotonic() - sending.sent_at_s
        if usage is not None and usage.output_tokens is not None:
            output_tokens = usage.output_tokens
            tokens = output_tokens + PROMPT_WORK * (usage.input_tokens or 0)
            self._expected.learn(sending.num_bytes, sending.config, usage.input_tokens, usage.output_tokens)
            if latency_s >= SLOW_S or self._timeouts.is_slow:
                self._timeouts.note_answer(latency_s, usage.output_tokens)
        self.governor.note_answer(sending.sent_at_s, latency_s, tokens, output_tokens)

    def note_headers(self, sending: Sending, headers: Mapping[bytes, bytes]) -> None:
        """Take note of what the response to `sending` says of rate limits."""
        if headers.keys().isdisjoint(RATE_HEADERS):
            return
        windows = parse_rate_windows(headers, time.time())
        if windows != (None, None):
            self._pace.note_windows(windows, sending.sent_at_s, sending.taken_then, self.clock.monotonic())

    def note_refusal(self, sending: Sending, retry_after_s: float | None, *, is_full: bool) -> None:
        """Take note that the server refused it: it has too many requests, or with `is_full` no room in its queue."""
        now_s = self.clock.monotonic()
        num_held = max(0, self.in_flight - 1)
        if self._is_chance(now_s, sending.taken_then[0], num_held):
            return
        self._pace.note_refusal(sending.sent_at_s, now_s, retry_after_s)
        if self.governor.note_refusal(sending.sent_at_s, now_s, num_held, retry_after_s, is_full=is_full):
            self._follow(now_s)

    def _is_chance(self, now_s: float, number: float, num_held: int) -> bool:
        """Whether a refusal came by chance or in a trial, so that nothing follows from it."""
        chance = self._chance
        was_chance, trial_per_s = chance.share is not None, chance.trial_per_s
        is_chance = chance.note_refusal(now_s, number, self.taken[0], num_held)
        if chance.trial_per_s != trial_per_s:
            self._pace.set_trial(chance.trial_per_s, now_s)
        if chance.share is not None and not was_chance:
            self._pace.forget_refusals()
            self.governor.forget_refusals()
            self._follow(now_s)
        return is_chance

    def _follow(self, now_s: float) -> None:
        limit = self.governor.limit
        if limit != self._limit.max_concurrent_requests:
            self._limit.resize(limit)
        is_news = not 0.5 < limit / self._logged_limit < 2
        if is_news and now_s - self._logged_at_s >= LOGGED_AFTER_S:
            self._logged_at_s, self._logged_limit = now_s, limit
            logger.info("%s: %d requests in flight at most: %s", self.url, limit, self.status.reason)

    async def _wake_after(self, seconds: float) -> None:
        await self.clock.sleep(seconds)
        self._waker = None
        self._limit.wake()


async def _is_unknown() -> bool:
    return False


def _never() -> None:
    return None
