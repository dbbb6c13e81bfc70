"""
What the server saw: the ground truth that tests and benchmarks compare a client with.

Counts and integrals, and requests in flight over time. Times are seconds of the server's monotonic clock. Knows nothing
of HTTP.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_MAX_SAMPLES = 4_000
_FIRST_INTERVAL_S = 0.001


@dataclass(frozen=True, kw_only=True)
class ServerStats:
    """
    What a server saw since its start or the last reset; generation requests only, unless said otherwise.

    Attributes:
        num_requests: Requests that arrived.
        by_status: Answers by HTTP status; 0 are those that were broken off by a fault or left unanswered.
        in_flight: Arrived and not yet answered, now.
        max_in_flight: The most of them at one time.
        running: Being served, now; at most `max_num_seqs`.
        max_running: The most of them at one time.
        waiting: In the queue, now.
        num_connections: Connections opened, for requests of any kind.
        open_connections: Of these, open now.
        num_duplicates: Requests whose body had come before, retries included.
        num_repaid: Requests answered in full though the same body had been answered in full before.
        num_aborted: Requests whose client went away first.
        prompt_tokens: Of all requests that were served.
        cached_tokens: Part of `prompt_tokens` that came from the prefix cache.
        output_tokens: Generated for answers that went out.
        wasted_tokens: Generated for answers that nobody got: aborted, or broken by a fault.
        num_preemptions: Sequences thrown out of the KV cache to be computed again.
        kv_cache_usage: Share of the KV cache in use now, 0 to 1.
        slots: `max_num_seqs`.
        busy_slot_s: Seconds that slots were in use, summed: ∫ running dt.
        longest_service_s: The longest time that one request was served.
        first_start_monotonic_s: When the first request began to be served; None before.
        last_start_monotonic_s: When the latest one began.
        last_end_monotonic_s: When the latest one ended.
        busy_slot_s_at_last_start: `busy_slot_s` up to `last_start_monotonic_s`.
        timeline: (monotonic seconds, in flight, running) at most every so often, thinned out as it grows.
    """

    num_requests: int
    by_status: dict[int, int]
    in_flight: int
    max_in_flight: int
    running: int
    max_running: int
    waiting: int
    num_connections: int
    open_connections: int
    num_duplicates: int
    num_repaid: int
    num_aborted: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    wasted_tokens: int
    num_preemptions: int
    kv_cache_usage: float
    slots: int
    busy_slot_s: float
    longest_service_s: float
    first_start_monotonic_s: float | None
    last_start_monotonic_s: float | None
    last_end_monotonic_s: float | None
    busy_slot_s_at_last_start: float
    timeline: list[tuple[float, int, int]]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ServerStats:
        """Return the stats that GET /stats wrote as JSON."""
        by_status = {int(status): count for status, count in values["by_status"].items()}
        timeline = [(at, in_flight, running) for at, in_flight, running in values["timeline"]]
        return cls(**{**values, "by_status": by_status, "timeline": timeline})

    @property
    def occupancy(self) -> float:
        """Share of all slots in use from the first start to the last end, 0 to 1."""
        return self._share(self.busy_slot_s, self.last_end_monotonic_s)

    @property
    def occupancy_before_tail(self) -> float:
        """Share of all slots in use from the first start to the last start: while there was work for every slot."""
        return self._share(self.busy_slot_s_at_last_start, self.last_start_monotonic_s)

    def _share(self, busy_s: float, until_s: float | None) -> float:
        if self.first_start_monotonic_s is None or until_s is None or until_s <= self.first_start_monotonic_s:
            return 0.0
        return busy_s / (self.slots * (until_s - self.first_start_monotonic_s))


@dataclass
class StatsRecorder:
    """Counts as things happen. The one writer is the server's event loop."""

    slots: int
    num_requests: int = 0
    by_status: Counter[int] = field(default_factory=Counter)
    in_flight: int = 0
    max_in_flight: int = 0
    running: int = 0
    max_running: int = 0
    num_connections: int = 0
    open_connections: int = 0
    num_duplicates: int = 0
    num_repaid: int = 0
    num_aborted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    wasted_tokens: int = 0
    num_preemptions: int = 0
    longest_service_s: float = 0.0
    first_start_s: float | None = None
    last_start_s: float | None = None
    last_end_s: float | None = None
    busy_at_last_start_s: float = 0.0
    _busy_s: float = 0.0
    _changed_s: float = 0.0
    _seen: dict[int, tuple[int, bool]] = field(default_factory=dict)
    _timeline: list[tuple[float, int, int]] = field(default_factory=list)
    _interval_s: float = _FIRST_INTERVAL_S
    _next_sample_s: float = 0.0

    def arrived(self, body_hash: int, now_s: float) -> int:
        """Note a request; return how often its body has come before."""
        self.num_requests += 1
        self.in_flight += 1
        if self.in_flight > self.max_in_flight:
            self.max_in_flight = self.in_flight
        num_before, was_answered = self._seen.get(body_hash, (0, False))
        self._seen[body_hash] = (num_before + 1, was_answered)
        self.num_duplicates += num_before > 0
        self._sample(now_s)
        return num_before

    def answered(self, body_hash: int, status: int, now_s: float, *, is_whole: bool) -> None:
        """Note that a request got its answer, of which `is_whole` tells whether it is a good one."""
        self.in_flight -= 1
        self.by_status[status] += 1
        if is_whole:
            num_before, was_answered = self._seen.get(body_hash, (1, False))
            self.num_repaid += was_answered
            self._seen[body_hash] = (num_before, True)
        self._sample(now_s)

    def aborted(self, now_s: float) -> None:
        """Note that a client went away before its answer."""
        self.in_flight -= 1
        self.num_aborted += 1
        self._sample(now_s)

    def started(self, now_s: float) -> None:
        """Note that a request began to be served."""
        self._integrate(now_s)
        self.running += 1
        if self.running > self.max_running:
            self.max_running = self.running
        if self.first_start_s is None:
            self.first_start_s = now_s
        self.last_start_s = now_s
        self.busy_at_last_start_s = self._busy_s
        self._sample(now_s)

    def ended(self, started_s: float, now_s: float) -> None:
        """Note that a request is not served any more."""
        self._integrate(now_s)
        self.running -= 1
        self.last_end_s = now_s
        self.longest_service_s = max(self.longest_service_s, now_s - started_s)

    def _integrate(self, now_s: float) -> None:
        self._busy_s += self.running * (now_s - self._changed_s)
        self._changed_s = now_s

    def _sample(self, now_s: float) -> None:
        if now_s < self._next_sample_s:
            return
        self._next_sample_s = now_s + self._interval_s
        self._timeline.append((now_s, self.in_flight, self.running))
        if len(self._timeline) >= _MAX_SAMPLES:
            del self._timeline[1::2]
            self._interval_s *= 2

    def after_reset(self) -> StatsRecorder:
        """Return a recorder that starts anew with what is in flight now."""
        fresh = StatsRecorder(self.slots, open_connections=self.open_connections)
        fresh.in_flight = fresh.max_in_flight = self.in_flight
        fresh.running = fresh.max_running = self.running
        fresh._changed_s = time.monotonic()
        return fresh

    def snapshot(self, *, waiting: int = 0, kv_cache_usage: float = 0.0) -> ServerStats:
        """Return what was seen up to now."""
        self._integrate(time.monotonic())
        return ServerStats(
            num_requests=self.num_requests,
            by_status=dict(self.by_status),
            in_flight=self.in_flight,
            max_in_flight=self.max_in_flight,
            running=self.running,
            max_running=self.max_running,
            waiting=waiting,
            num_connections=self.num_connections,
            open_connections=self.open_connections,
            num_duplicates=self.num_duplicates,
            num_repaid=self.num_repaid,
            num_aborted=self.num_aborted,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
            wasted_tokens=self.wasted_tokens,
            num_preemptions=self.num_preemptions,
            kv_cache_usage=kv_cache_usage,
            slots=self.slots,
            busy_slot_s=self._busy_s,
            longest_service_s=self.longest_service_s,
            first_start_monotonic_s=self.first_start_s,
            last_start_monotonic_s=self.last_start_s,
            last_end_monotonic_s=self.last_end_s,
            busy_slot_s_at_last_start=self.busy_at_last_start_s,
            timeline=list(self._timeline),
        )
