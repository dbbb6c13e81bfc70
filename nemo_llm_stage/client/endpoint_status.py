"""
What each server has done so far: answers, failures by kind, and a histogram of latencies.

Costs a few additions per request. Knows outcomes of sends; knows nothing of what was sent.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, zip_longest
from typing import Literal

from nemo_llm_stage.errors import ConnectionFailedError, RateLimitError, RequestError

EndpointState = Literal["starting", "healthy", "suspect", "resting", "gone"]

_ORDER: tuple[EndpointState, ...] = ("gone", "resting", "suspect", "starting", "healthy")
"""If two workers see a server differently, the state that is later in this order is shown."""

BUCKETS_PER_DOUBLING = 4
"""Bounds of neighbouring latency buckets differ by 2^(1/4): 19 %."""

MIN_LATENCY_S = 0.001
NUM_BUCKETS = 24 * BUCKETS_PER_DOUBLING
"""From 1 ms to 4.6 hours."""

_BOUNDS_S = tuple(MIN_LATENCY_S * 2 ** (i / BUCKETS_PER_DOUBLING) for i in range(1, NUM_BUCKETS))
"""Where each bucket ends and the next one begins."""


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """
    How one server stands, as one worker sees it or as all do together. Times of day are unix seconds.

    Attributes:
        url: Base URL.
        state: ``starting`` before its first answer, then ``healthy``; ``suspect`` or ``resting`` while it gets no
            requests because it is silent or fails; ``gone`` where it has left.
        since: When the state began; None where that is not known.
        limit: Most requests in flight there; None where it gets none from here.
        mode: What the limit follows: ``fixed`` for a number, ``metrics`` of the server, ``throughput``, ``refusals``.
        reason: Why it gets no requests, in the words of the last failure; else why the limit is what it is.
        bottleneck: What holds the work back where the limit adapts: ``server``, ``kv cache``, ``rate limit``,
            ``client cpu``, ``open files``, ``input`` or ``unknown``; None where the limit is fixed.
        moved: Why the limit was moved the last time; None where it is fixed.
        held_s: Bottleneck → seconds, about, for which it held the work back; nothing where the limit is fixed.
        prompt_speed: Prompt tokens that it computes a second, on average since its start; None where it does not tell.
        num_ghosts: Requests that the server had lost: it showed none while they were open; they were sent again.
        group: Number of the client that asks it, where there are several: only servers of one group are alike.
        num_unasked: Connections that were closed because it, or a proxy before it, sent what no request had asked for,
            e.g. an answer a second time.
        in_flight: Requests in flight there.
        num_answered: Answers.
        num_failed: Sends that failed, of every kind.
        num_rate_limited: Those that the server refused with a rate limit (429).
        num_refused: Those that found no connection.
        failures: Kind of error → failed sends.
        next_try_at: When the next request goes to a server that rests; None where that is not planned.
        latencies: Answers by latency; bucket i ends at ``0.001 · 2^((i + 1) / 4)`` s. Trailing zeros are left out.
    """

    url: str
    state: EndpointState = "starting"
    since: float | None = None
    limit: int | None = None
    mode: str = "fixed"
    reason: str | None = None
    in_flight: int = 0
    num_answered: int = 0
    num_failed: int = 0
    num_rate_limited: int = 0
    num_refused: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    next_try_at: float | None = None
    latencies: tuple[int, ...] = ()
    bottleneck: str | None = None
    moved: str | None = None
    held_s: Mapping[str, int] = field(default_factory=dict)
    prompt_speed: float | None = None
    num_ghosts: int = 0
    num_unasked: int = 0
    group: int = 0

    @property
    def is_down(self) -> bool:
        """Whether it gets no requests because it fails or is silent."""
        return self.state in {"suspect", "resting"}

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

    Attributes:
        latencies: Answers by latency; see `EndpointStatus`.
    """

    __slots__ = ("_failures", "_url", "latencies", "num_answered")

    def __init__(self, url: str) -> None:
        self._url = url
        self._failures: dict[str, int] = {}
        self.num_answered = 0
        self.latencies = [0] * NUM_BUCKETS

    @property
    def num_sends(self) -> int:
        """Sends that have ended."""
        return self.num_answered + sum(list(self._failures.values()))

    def note_answer(self, latency_s: float) -> None:
        """Count an answer."""
        self.num_answered += 1
        self.latencies[bucket_of(latency_s)] += 1

    def note_failure(self, error: RequestError) -> None:
        """Count a failed send."""
        self._failures[error.kind] = self._failures.get(error.kind, 0) + 1

    def status(self) -> EndpointStatus:
        """Return what was counted."""
        num_buckets = next((i + 1 for i in reversed(range(NUM_BUCKETS)) if self.latencies[i]), 0)
        failures = dict(self._failures)
        return EndpointStatus(
            self._url,
            num_answered=self.num_answered,
            num_failed=sum(failures.values()),
            num_rate_limited=failures.get(RateLimitError.kind, 0),
            num_refused=failures.get(ConnectionFailedError.kind, 0),
            failures=failures,
            latencies=tuple(self.latencies[:num_buckets]),
        )


def merge_endpoints(statuses: Iterable[EndpointStatus]) -> tuple[EndpointStatus, ...]:
    """Return one status for each server, as all workers see it together: it rests only if it does so for all."""
    merged: dict[str, EndpointStatus] = {}
    for status in statuses:
        known = merged.get(status.url)
        merged[status.url] = status if known is None else _merge(known, status)
    return tuple(merged.values())


def _merge(one: EndpointStatus, other: EndpointStatus) -> EndpointStatus:
    leading = max(one, other, key=lambda status: (_ORDER.index(status.state), status.since or 0.0))
    return replace(
        leading,
        next_try_at=_next_try([status.next_try_at for status in (one, other) if status.state == leading.state]),
        limit=None if one.limit is None and other.limit is None else (one.limit or 0) + (other.limit or 0),
        failures=dict(Counter(one.failures) + Counter(other.failures)),
        held_s=dict(Counter(one.held_s) + Counter(other.held_s)),
        prompt_speed=leading.prompt_speed or one.prompt_speed or other.prompt_speed,
        num_ghosts=one.num_ghosts + other.num_ghosts,
        num_unasked=one.num_unasked + other.num_unasked,
        in_flight=one.in_flight + other.in_flight,
        num_answered=one.num_answered + other.num_answered,
        num_failed=one.num_failed + other.num_failed,
        num_rate_limited=one.num_rate_limited + other.num_rate_limited,
        num_refused=one.num_refused + other.num_refused,
        latencies=tuple(map(sum, zip_longest(one.latencies, other.latencies, fillvalue=0))),
    )


def _next_try(planned: Iterable[float | None]) -> float | None:
    """Return the first try that is to come; a worker without rows lets the time of its own pass."""
    times, now = [at for at in planned if at is not None], time.time()
    return min((at for at in times if at > now), default=max(times, default=None))


def bucket_of(latency_s: float) -> int:
    """Return the index of the bucket that a latency is counted in."""
    return bisect_right(_BOUNDS_S, latency_s)


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
