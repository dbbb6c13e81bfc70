"""
What each server has done so far: answers, failures by kind, and a histogram of latencies.

Costs a few additions per request. Knows outcomes of sends; knows nothing of what was sent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, zip_longest
from typing import Literal

from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import ConnectionFailedError, RateLimitError, RequestError

EndpointState = Literal["ok", "down"]

BUCKETS_PER_DOUBLING = 4
"""Bounds of neighbouring latency buckets differ by 2^(1/4): 19 %."""

MIN_LATENCY_S = 0.001
NUM_BUCKETS = 24 * BUCKETS_PER_DOUBLING
"""From 1 ms to 4.6 hours."""


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """
    How one server stands, as one worker sees it or as all do together. Times of day are unix seconds.

    Attributes:
        url: Base URL.
        state: ``down`` while connections to it fail and nothing was answered since.
        since: When the state began; None where it has been ok from the start.
        limit: Most requests in flight there; None where several servers share a limit.
        mode: How the limit is set.
        reason: Why it is down, in the words of the last failure; None where it is ok.
        in_flight: Requests in flight there.
        num_answered: Answers.
        num_failed: Sends that failed, of every kind.
        num_rate_limited: Those that the server refused with a rate limit (429).
        num_refused: Those that found no connection.
        next_try_at: When the next request goes to a server that is down; None where that is not planned.
        latencies: Answers by latency; bucket i ends at ``0.001 · 2^((i + 1) / 4)`` s. Trailing zeros are left out.
    """

    url: str
    state: EndpointState = "ok"
    since: float | None = None
    limit: int | None = None
    mode: str = "fixed"
    reason: str | None = None
    in_flight: int = 0
    num_answered: int = 0
    num_failed: int = 0
    num_rate_limited: int = 0
    num_refused: int = 0
    next_try_at: float | None = None
    latencies: tuple[int, ...] = ()

    @property
    def p50_s(self) -> float | None:
        """Half of the answers took at most so long; None before the first."""
        return percentile_s(self.latencies, 0.50)

    @property
    def p95_s(self) -> float | None:
        """Likewise 95 % of them."""
        return percentile_s(self.latencies, 0.95)

    @property
    def p99_s(self) -> float | None:
        """Likewise 99 % of them."""
        return percentile_s(self.latencies, 0.99)


class EndpointMeter:
    """
    Counts what is sent to one server. Lives on one event loop; `status` may be called from any thread.

    Args:
        url: Base URL.
        now: Unix seconds.
    """

    def __init__(self, url: str, now: Callable[[], float] = time.time) -> None:
        self._url = url
        self._now = now
        self._in_flight = 0
        self._num_answered = 0
        self._num_failed = 0
        self._num_rate_limited = 0
        self._num_refused = 0
        self._is_down = False
        self._since: float | None = None
        self._reason: str | None = None
        self._latencies = [0] * NUM_BUCKETS

    async def observe(self, attempt: Awaitable[Completion]) -> Completion:
        """Return what `attempt`, one send to the server, returns, and count it."""
        self._in_flight += 1
        try:
            completion = await attempt
        except RequestError as error:
            self._note_failure(error)
            raise
        finally:
            self._in_flight -= 1
        self._num_answered += 1
        self._latencies[bucket_of(completion.latency_s or 0.0)] += 1
        if self._is_down:
            self._set_state(is_down=False, reason=None)
        return completion

    def status(self) -> EndpointStatus:
        """Return how the server stands."""
        num_buckets = next((i + 1 for i in reversed(range(NUM_BUCKETS)) if self._latencies[i]), 0)
        return EndpointStatus(
            self._url,
            state="down" if self._is_down else "ok",
            since=self._since,
            reason=self._reason,
            in_flight=self._in_flight,
            num_answered=self._num_answered,
            num_failed=self._num_failed,
            num_rate_limited=self._num_rate_limited,
            num_refused=self._num_refused,
            latencies=tuple(self._latencies[:num_buckets]),
        )

    def _note_failure(self, error: RequestError) -> None:
        self._num_failed += 1
        if isinstance(error, RateLimitError):
            self._num_rate_limited += 1
        if isinstance(error, ConnectionFailedError):
            self._num_refused += 1
            if not self._is_down:
                self._set_state(is_down=True, reason=f"{error.kind}: {error}")
        elif self._is_down and error.status is not None:  # a refusal is an answer, too
            self._set_state(is_down=False, reason=None)

    def _set_state(self, *, is_down: bool, reason: str | None) -> None:
        self._is_down, self._reason, self._since = is_down, reason, self._now()


def merge_endpoints(statuses: Iterable[EndpointStatus]) -> tuple[EndpointStatus, ...]:
    """Return one status for each server, as all workers see it together: it is down only if it is so for all."""
    merged: dict[str, EndpointStatus] = {}
    for status in statuses:
        known = merged.get(status.url)
        merged[status.url] = status if known is None else _merge(known, status)
    return tuple(merged.values())


def _merge(one: EndpointStatus, other: EndpointStatus) -> EndpointStatus:
    leading = max(one, other, key=lambda status: (status.state == "ok", status.since or 0.0))
    return replace(
        leading,
        in_flight=one.in_flight + other.in_flight,
        num_answered=one.num_answered + other.num_answered,
        num_failed=one.num_failed + other.num_failed,
        num_rate_limited=one.num_rate_limited + other.num_rate_limited,
        num_refused=one.num_refused + other.num_refused,
        latencies=tuple(map(sum, zip_longest(one.latencies, other.latencies, fillvalue=0))),
    )


def bucket_of(latency_s: float) -> int:
    """Return the index of the bucket that a latency is counted in."""
    if latency_s <= MIN_LATENCY_S:
        return 0
    return min(NUM_BUCKETS - 1, int(math.log2(latency_s / MIN_LATENCY_S) * BUCKETS_PER_DOUBLING))


def percentile_s(latencies: Sequence[int], share: float) -> float | None:
    """
    Return the latency that this share of the answers did not exceed, at most 9 % off; None where there are none.

    Args:
        latencies: Answers by bucket.
        share: From 0 to 1.
    """
    total = sum(latencies)
    if not total:
        return None
    index = next(i for i, num in enumerate(accumulate(latencies)) if num >= share * total)
    return float(MIN_LATENCY_S * 2 ** ((index + 0.5) / BUCKETS_PER_DOUBLING))
