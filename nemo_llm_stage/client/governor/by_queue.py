"""
The limit by the server's own metrics: keep a small queue waiting there, and give way where its KV cache overflows.

A queue that never empties is what counts; one that comes and goes is a batch that has not begun. Pure.

Source: the rule was compared with others in a model of a server (closed loop, 256 slots, and a KV cache for 300): it
reached the best throughput in both, latency gradients 28 to 53 % of it. The standing queue is that of CoDel (RFC 8289).
"""

from __future__ import annotations

import math
from collections import deque

from nemo_llm_stage.client.governor.metrics import ServerLoad
from nemo_llm_stage.client.governor.signals import SATURATED_SHARE, Move, Signals

QUEUE_SHARE = 0.05
"""Requests that should wait at the server, for each one that runs: it never finds its queue empty."""

MIN_QUEUE = 4
FULL_QUEUE_SHARE = 0.5
"""Where the server refuses what does not fit into its queue, so much of that queue is enough."""

NUM_READINGS = 3
"""Readings in a row that must show a queue before it counts as standing."""

MAX_FRONT_SHARE = 0.2
"""Share of the requests in flight that the server does not show, from which on more of them would not help it."""

MIN_SHARE = 0.5
"""
Of the requests at the server: those of other clients, which wait there too, drive the limit no lower than this, and not
beyond what runs. Of two clients that fill a server each gets half of it.
"""

FULL_KV = 0.95
MAX_PREEMPTED = 0.2
"""
Requests thrown out of a full cache, for each one answered, from which on the limit gives way. A few are worth it: what
is thrown out has hardly begun, and a cache that none is thrown out of is not full. In the emulator of an engine whose
cache holds about 105, a limit without them got 0.91 of the best limit's work, 0.18 for each answer 0.97, 1.2 all of it.
"""

MIN_ANSWERED = 5.0
"""The first ones count as if so many had been answered."""

KEPT = 0.95
"""Of what was counted up to now, with each reading."""

SMALL_CUT, LARGE_CUT = 0.97, 0.5
"""
To what runs, as a share of what is in flight at most and at least; the mean of a few readings: just after many were
thrown out, fewer run than fit.
"""

CEILING_GROWTH = 1.002
"""With each reading: the ceiling that preemptions left is tried again, a little at a time."""


class ByQueue:
    """
    Moves a limit with each reading of the server's metrics.

    Args:
        max_limit: Never beyond.
        share: This client's part of the server, where other workers of the same job ask it too.

    Attributes:
        has_doubled_enough: Whether the start is over: doubling has ended at a queue, a refusal or a full cache.
    """

    def __init__(self, max_limit: float, share: float = 1.0) -> None:
        self._max_limit = self._ceiling = max_limit
        self._share = share
        self.has_doubled_enough = False
        self._queues: deque[float] = deque(maxlen=NUM_READINGS)
        self._running: deque[float] = deque(maxlen=NUM_READINGS)
        self._num_preemptions: float | None = None
        self._preempted = self._answered = 0.0
        self._num_grown = 0
        self._num_full = 0.0
        self._most_waiting = math.inf

    def next(self, limit: float, signals: Signals, load: ServerLoad, num_answers: int, *, may_grow: bool) -> Move:
        """
        Return the limit for the time until the next reading.

        Args:
            limit: Up to now.
            signals: What was seen.
            load: The reading.
            num_answers: Answers since the last reading.
            may_grow: Whether the limit was what held requests back.
        """
        own_share = min(1.0, signals.in_flight / max(1.0, load.running + load.waiting))
        is_preempting = self._is_preempting(load, own_share, num_answers)
        self._queues.append(load.waiting)
        self._running.append(load.running)
        target = min(self._most_waiting, max(MIN_QUEUE, QUEUE_SHARE * load.running))
        standing = min(self._queues) if len(self._queues) == NUM_READINGS else 0.0
        if signals.in_flight > limit + target:
            self._queues.clear()
            self._preempted = 0.0
            return Move(limit, f"waits until no more than {limit:.0f} are in flight", "server")
        if is_preempting:
            return self._give_way(min(limit, signals.in_flight), load)
        if standing > 2 * target:
            self._end_start()
            self._queues.clear()
            smaller = limit - min(own_share * (standing - target), 0.3 * limit)
            fair = self._share * min(load.running, MIN_SHARE * (load.running + load.waiting))
            smaller = min(limit, max(1.0, fair, smaller))
            self._num_full = load.running
            return Move(smaller, f"{standing:.0f} wait at the server, {target:.0f} are enough", "server")
        if standing >= target:
            self.has_doubled_enough = True
            self._num_full = load.running
            return Move(limit, f"{load.running:.0f} run and {load.waiting:.0f} wait at the server", "server")
        if not may_grow:
            return Move(limit, "the server has room, and there are not enough rows to send", "input")
        if signals.in_flight - load.running - load.waiting > MAX_FRONT_SHARE * signals.in_flight:
            return Move(limit, "many requests in flight do not reach the server's queue", "unknown")
        num_free = self._num_full - load.running if signals.in_flight >= SATURATED_SHARE * limit else 0.0
        return self._grow(limit, load, target, num_free)

    def note_cut(self, *, is_full: bool = False) -> None:
        """Take note that a refusal has lowered the limit. `is_full`: no more requests may wait than did."""
        self._end_start()
        if is_full and self._queues:
            self._most_waiting = min(self._most_waiting, max(1.0, FULL_QUEUE_SHARE * self._queues[-1]))

    def _is_preempting(self, load: ServerLoad, own_share: float, num_answers: int) -> bool:
        """Whether too many requests are thrown out of a full KV cache."""
        before, self._num_preemptions = self._num_preemptions, load.num_preemptions
        self._preempted *= KEPT
        self._answered = KEPT * self._answered + num_answers
        if before is None or load.num_preemptions is None or load.num_preemptions <= before:
            return False
        self._preempted += own_share * (load.num_preemptions - before)
        is_full = load.kv_usage is None or load.kv_usage > FULL_KV
        return is_full and self._preempted > MAX_PREEMPTED * max(MIN_ANSWERED, self._answered)

    def _give_way(self, held: float, load: ServerLoad) -> Move:
        self._end_start()
        smaller = max(LARGE_CUT * held, min(sum(self._running) / len(self._running), SMALL_CUT * held))
        self._ceiling = max(1.0, smaller)
        self._preempted = 0.0
        self._queues.clear()
        return Move(
            self._ceiling, f"the server's KV cache is full and throws requests out; {load.running:.0f} run", "kv cache"
        )

    def _grow(self, limit: float, load: ServerLoad, target: float, num_free: float) -> Move:
        """`num_free`: so many more ran before, so that others have left."""
        self._ceiling = min(self._max_limit, CEILING_GROWTH * self._ceiling)
        self._num_grown += 1
        if load.waiting >= target:  # it may be a batch that has not begun
            reason = f"{load.running:.0f} run at the server and {load.waiting:.0f} wait; that may be for a moment"
            return Move(limit, reason, "server")
        if not self.has_doubled_enough:
            larger = 2 * limit
        else:
            larger = limit + max(1.0, 0.05 * min(4, 1 + self._num_grown // 4) * limit, min(num_free, limit))
        larger = max(limit, min(self._ceiling, larger))
        is_at_ceiling = larger >= self._ceiling < self._max_limit
        reason = f"{load.running:.0f} run at the server and {load.waiting:.0f} wait: it has room"
        return Move(larger, reason, "kv cache" if is_at_ceiling else "unknown")

    def _end_start(self) -> None:
        self.has_doubled_enough = True
        self._num_grown = 0
