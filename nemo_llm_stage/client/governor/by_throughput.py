"""
The limit by the work done per second: try a larger one, and keep it where it brings more.

For servers that tell nothing of their queue. Latency alone says little, since it grows with the batch by design; the
work per second grows until the server is full and is flat from there on. Pure.

Source: the hill climbing of .NET's thread pool is the precedent; in a model of a server it reached 94 to 100 % of the
best throughput, latency gradients 28 to 53 %.
"""

from __future__ import annotations

import math

from nemo_llm_stage.client.governor.signals import Bottleneck, Move, Signals

FIRST_STEP = 2.0
SMALLEST_STEP = 1.1
NEXT_STEP = 1.4
"""Factors of the limit: the first trial, the one that is too small to show a gain, and the first of later trials."""

MIN_ELASTICITY = 0.12
"""A larger limit is kept where ``ln(work' / work) ≥ 0.12 · ln(limit' / limit)``."""

MIN_GAIN_OF_LESS = 1.02
"""A smaller limit is kept where the work is so much more."""

MIN_WARM_UP_S, MIN_MEASURING_S, MAX_MEASURING_S = 2.0, 3.0, 60.0
NEW_SHARE = 0.5
"""
A limit is measured once so many answers, as a share of the requests in flight, are of requests that were sent under it.
Before, answers of requests that met a shorter queue make it look better than it is: two full servers were doubled and
doubled, up to 2,048 in flight.
"""

NUM_MEASURED = 32
"""Answers that make a measurement."""

CLEARLY_WORSE = 0.8
NUM_EPOCHS_AT_REST = 3
MAX_CHANGE = 0.15
"""A change of the work at the same limit from which on the server, or the rows, are not what they were."""


class ByThroughput:
    """
    Measures the work per second at one limit after another.

    The work is that of the answers that come, divided by the time that they took, for each request in flight. That is
    the work per second by Little's law, with much less noise than counting answers: a long answer took long.

    Args:
        max_limit: Never beyond.
    """

    def __init__(self, max_limit: float) -> None:
        self._max_limit = max_limit
        self._base: tuple[float, float] | None = None
        self._step = FIRST_STEP
        self._rests_left = 0
        self._tries_less = False
        self._latency_s: float | None = None
        self._bottleneck: Bottleneck = "unknown"
        self._began_s: float | None = None
        self._restart(None)

    def note_answer(self, sent_at_s: float, latency_s: float, tokens: float) -> None:
        """Take note of an answer: when it was asked for, its time from then on, and its work."""
        self._num_answers += 1
        self._num_new += self._began_s is not None and sent_at_s >= self._began_s
        self._sum_latency_s += latency_s
        self._sum_tokens += tokens

    def reset(self) -> None:
        """Forget what was measured, e.g. because something else has moved the limit."""
        self._base, self._step, self._rests_left = None, NEXT_STEP, 0
        self._restart(None)

    def next(self, limit: float, signals: Signals, *, may_grow: bool) -> Move:
        """
        Return the limit for the time until the next signals.

        Args:
            limit: Up to now.
            signals: What was seen.
            may_grow: Whether the limit was what held requests back.
        """
        if self._began_s is None:
            self._restart(signals.now_s)
        if not may_grow:
            self._restart(signals.now_s)
            return Move(limit, "there are not enough rows to send", "input")
        work = self._measure(limit, signals)
        if work is None:
            return Move(limit, "measures the work per second", self._bottleneck)
        move = self._judge(limit, work)
        self._restart(signals.now_s)
        return move

    def _restart(self, now_s: float | None) -> None:
        self._began_s = now_s
        self._measured_from_s: float | None = None
        self._num_new = 0
        self._clear()

    def _clear(self) -> None:
        self._num_answers = 0
        self._sum_latency_s = self._sum_tokens = 0.0
        self._sum_in_flight = 0.0
        self._num_ticks = 0

    def _measure(self, limit: float, signals: Signals) -> float | None:
        """The work per second at this limit; None where it is not known yet."""
        if self._num_answers:
            self._latency_s = self._sum_latency_s / self._num_answers
        assert self._began_s is not None
        if self._latency_s is None:
            return None
        if self._measured_from_s is None:  # requests of the limit before are still coming back
            is_new = self._num_new >= NEW_SHARE * min(limit, signals.in_flight)
            if is_new and signals.now_s - self._began_s >= max(MIN_WARM_UP_S, 1.2 * self._latency_s):
                self._measured_from_s = signals.now_s
                self._clear()
            return None
        self._sum_in_flight += signals.in_flight
        self._num_ticks += 1
        seconds = signals.now_s - self._measured_from_s
        work = self._work()
        if self._num_answers >= NUM_MEASURED // 2 and self._is_clearly_worse(limit, work):
            return work
        is_enough = seconds >= max(MIN_MEASURING_S, self._latency_s) and self._num_answers >= NUM_MEASURED
        is_too_long = seconds >= max(MAX_MEASURING_S, 3 * self._latency_s) and self._num_answers >= NUM_MEASURED // 4
        return work if is_enough or is_too_long else None

    def _work(self) -> float:
        if self._sum_latency_s <= 0:
            return 0.0
        return self._sum_in_flight / self._num_ticks * self._sum_tokens / self._sum_latency_s

    def _is_clearly_worse(self, limit: float, work: float) -> bool:
        """Whether a larger limit brings so much less that measuring on would only cost."""
        return self._base is not None and limit > self._base[0] and work < CLEARLY_WORSE * self._base[1]

    def _judge(self, limit: float, work: float) -> Move:
        if self._base is None:
            self._base = (limit, work)
            return self._try(limit)
        base_limit, base_work = self._base
        if limit == base_limit:
            return self._look_again(limit, work)
        change = work / base_work - 1 if base_work else math.inf
        if limit > base_limit:
            is_better = math.log1p(max(-0.99, change)) >= MIN_ELASTICITY * math.log(limit / base_limit)
        else:
            is_better = 1 + change >= MIN_GAIN_OF_LESS
        if is_better:
            self._base = (limit, work)
            return self._try(limit)
        self._bottleneck = "server"
        self._step = math.sqrt(self._step)
        reason = f"{limit:.0f} in flight: {change:+.0%} work per second, not worth it"
        if self._step < SMALLEST_STEP or limit < base_limit:
            self._step, self._rests_left = NEXT_STEP, NUM_EPOCHS_AT_REST
            return Move(base_limit, reason, "server")
        return Move(min(self._max_limit, base_limit * self._step), reason, "server")

    def _try(self, limit: float) -> Move:
        factor = 0.8 if self._tries_less else self._step
        tried = max(1.0, min(self._max_limit, limit * factor))
        reason = f"tries whether {tried:.0f} in flight bring more work per second"
        return Move(tried, reason, self._bottleneck)

    def _look_again(self, limit: float, work: float) -> Move:
        """The work at the limit that was found: rest, or try again where it has changed or rested long enough."""
        assert self._base is not None
        has_changed = abs(work / self._base[1] - 1) > MAX_CHANGE if self._base[1] else True
        self._base = (limit, 0.5 * (work + self._base[1]) if not has_changed else work)
        self._rests_left -= 1
        if self._rests_left > 0 and not has_changed:
            return Move(limit, "more in flight brought no more work per second", "server")
        self._tries_less = not self._tries_less and not has_changed
        self._step = math.sqrt(FIRST_STEP) if has_changed else NEXT_STEP
        return self._try(limit)
