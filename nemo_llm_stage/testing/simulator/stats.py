"""
What the server saw: the ground truth that tests and benchmarks compare a client with.

Counts and integrals, and requests in flight over time. Times are seconds of the server's monotonic clock. Knows nothing
of HTTP.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

_MAX_SAMPLES = 4_000
_FIRST_INTERVAL_S = 0.001


@dataclass(kw_only=True)
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
        prefill_s: Seconds, of the server's own time, that new prompts added to its steps.
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

    num_requests: int = 0
    by_status: dict[int, int] = field(default_factory=dict)
    in_flight: int = 0
    max_in_flight: int = 0
    running: int = 0
    max_running: int = 0
    waiting: int = 0
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
    prefill_s: float = 0.0
    kv_cache_usage: float = 0.0
    slots: int
    busy_slot_s: float = 0.0
    longest_service_s: float = 0.0
    first_start_monotonic_s: float | None = None
    last_start_monotonic_s: float | None = None
    last_end_monotonic_s: float | None = None
    busy_slot_s_at_last_start: float = 0.0
    timeline: list[tuple[float, int, int]] = field(default_factory=list)

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


class StatsRecorder:
    """
    Counts as things happen. The one writer is the server's event loop.

    Attributes:
        seen: The counts; `waiting` and `kv_cache_usage` are the engine's to tell.
    """

    def __init__(self, slots: int) -> None:
        self.seen = ServerStats(slots=slots)
        self.reset()

    def arrived(self, body_hash: int, now_s: float) -> int:
        """Note a request; return how often its body has come before."""
        seen = self.seen
        seen.num_requests += 1
        seen.in_flight += 1
        if seen.in_flight > seen.max_in_flight:
            seen.max_in_flight = seen.in_flight
        num_before, was_answered = self._bodies.get(body_hash, (0, False))
        self._bodies[body_hash] = (num_before + 1, was_answered)
        seen.num_duplicates += num_before > 0
        self._sample(now_s)
        return num_before

    def answered(self, body_hash: int, status: int, now_s: float, *, is_whole: bool) -> None:
        """Note that a request got its answer; `is_whole` says whether it is a good one."""
        seen = self.seen
        seen.in_flight -= 1
        seen.by_status[status] = seen.by_status.get(status, 0) + 1
        if is_whole:
            num_before, was_answered = self._bodies.get(body_hash, (1, False))
            seen.num_repaid += was_answered
            self._bodies[body_hash] = (num_before, True)
        self._sample(now_s)

    def aborted(self, now_s: float) -> None:
        """Note that a client went away before its answer."""
        self.seen.in_flight -= 1
        self.seen.num_aborted += 1
        self._sample(now_s)

    def started(self, now_s: float) -> None:
        """Note that a request began to be served."""
        self._integrate(now_s)
        seen = self.seen
        seen.running += 1
        if seen.running > seen.max_running:
            seen.max_running = seen.running
        if seen.first_start_monotonic_s is None:
            seen.first_start_monotonic_s = now_s
        seen.last_start_monotonic_s = now_s
        seen.busy_slot_s_at_last_start = seen.busy_slot_s
        self._sample(now_s)

    def ended(self, started_s: float, now_s: float) -> None:
        """Note that a request is not served any more."""
        self._integrate(now_s)
        seen = self.seen
        seen.running -= 1
        seen.last_end_monotonic_s = now_s
        if now_s - started_s > seen.longest_service_s:
            seen.longest_service_s = now_s - started_s

    def reset(self) -> None:
        """Start anew, with what is in flight, running and connected now."""
        old = self.seen
        self.seen = ServerStats(
            slots=old.slots,
            in_flight=old.in_flight,
            max_in_flight=old.in_flight,
            running=old.running,
            max_running=old.running,
            open_connections=old.open_connections,
        )
        self._bodies: dict[int, tuple[int, bool]] = {}
        self._changed_s = time.monotonic()
        self._interval_s = _FIRST_INTERVAL_S
        self._next_sample_s = 0.0

    def snapshot(self, *, waiting: int, kv_cache_usage: float) -> ServerStats:
        """Return a copy of what was seen up to now."""
        self._integrate(time.monotonic())
        seen = self.seen
        return replace(
            seen,
            waiting=waiting,
            kv_cache_usage=kv_cache_usage,
            by_status=dict(seen.by_status),
            timeline=list(seen.timeline),
        )

    def _integrate(self, now_s: float) -> None:
        self.seen.busy_slot_s += self.seen.running * (now_s - self._changed_s)
        self._changed_s = now_s

    def _sample(self, now_s: float) -> None:
        if now_s < self._next_sample_s:
            return
        self._next_sample_s = now_s + self._interval_s
        timeline = self.seen.timeline
        timeline.append((now_s, self.seen.in_flight, self.seen.running))
        if len(timeline) >= _MAX_SAMPLES:
            del timeline[1::2]
            self._interval_s *= 2
