"""
The limit by the work done per second: try a larger one, and keep it where it brings more.

For servers that tell nothing of their queue. Latency alone says little, since it grows with the batch by design; the
work per second grows until the server is full and is flat from there on. Where it grows still, but those that were
added wait before their first token (`waits`), the server is full too: its KV cache throws requests out. Of limits that
bring the same, the smallest without waits is kept. Pure.

Source: the hill climbing of .NET's thread pool is the precedent; in a model of a server it reached 94 to 100 % of the
best throughput, latency gradients 28 to 53 %.
"""

from __future__ import annotations

import math

from nemo_llm_stage.client.governor.signals import Bottleneck, Move, Signals
from nemo_llm_stage.client.governor.work import Seen, WorkMeter

FIRST_STEP = 2.0
SMALLEST_STEP = 1.1
NEXT_STEP = 1.2
"""Factors of the limit: the first trial, the one that is too small to show a gain, and the first of later trials."""

MIN_ELASTICITY = 0.12
"""A larger limit is kept where ``ln(work' / work) ≥ 0.12 · ln(limit' / limit)``."""

MAX_WAITING, CLEAR_ELASTICITY = 0.25, 0.6
"""It is not kept where more than this share of the added requests wait, unless the work grows nearly as it does."""

MOSTLY_WAITING = 0.6
"""Where such a share waits, nothing else is measured."""

MIN_GAIN_OF_LESS = 1.02
"""A smaller limit is kept where the work is so much more, or where the answers tell of waits, no less."""

MAX_QUEUE, QUEUE_CUT, SMALLEST_LESS = 0.08, 1.25, 0.7
"""
Where more than this share of the limit waits, a limit without them, and a little less, is tried; the smallest, as a
share. What a full KV cache has thrown out does not all look as if it waited.
"""

NEW_QUEUE = 0.04
"""Where such a share waits that did not before, a larger limit is measured again: the wait grew meanwhile."""

SMALL_QUEUE, NEARLY_ALL = 0.02, 0.93
"""Where more than this share waits, nearly all of the limit may be enough."""

KEPT, MOST_KEPT, MIN_SPARED = 0.96, 0.98, 0.3
"""
It is kept where so much of the largest limit's work is, the second with nearly as many in flight, and this share of the
requests that are left out waits no more: what does not wait is not thrown out of a KV cache either. Other waits, as for
an address far away, are as long as before.
"""

MAY_BE_KEPT = 0.86
"""With so much of the work it is measured again: what a full KV cache has thrown out takes a while to come back."""

FEWEST = 16
"""No smaller limit is tried because requests wait."""

CLEARLY_WORSE = 0.8
NUM_EPOCHS_AT_REST, MOST_EPOCHS_AT_REST = 6, 24
"""Measurements between two trials at first, and after trials that brought nothing."""

MAX_CHANGE = 0.15
"""A change of the work at the same limit from which on the server, or the rows, are not what they were."""


class ByThroughput:
    """
    Measures the work per second at one limit after another.

    Args:
        max_limit: Never beyond.
    """

    def __init__(self, max_limit: float) -> None:
        self._max_limit = max_limit
        self._meter = WorkMeter()
        self._base: Seen | None = None
        self._step = FIRST_STEP
        self._too_many: float | None = None
        self._usual_waiting = self._most_work = 0.0
        self._num_rests, self._rests_left = NUM_EPOCHS_AT_REST, 0
        self._tries_less = self._has_grown = self._has_looked_again = False
        self._bottleneck: Bottleneck = "unknown"

    def note_answer(self, sent_at_s: float, latency_s: float, tokens: float, output_tokens: float) -> None:
        """Take note of an answer: when it was asked for, its time from then on, its work and its length."""
        self._meter.note_answer(sent_at_s, latency_s, tokens, output_tokens)

    def reset(self) -> None:
        """Forget what was measured, e.g. because something else has moved the limit."""
        self._base, self._step, self._rests_left = None, NEXT_STEP, 0
        self._too_many, self._num_rests, self._usual_waiting = None, NUM_EPOCHS_AT_REST, 0.0
        self._has_grown = self._has_looked_again = False
        self._most_work = 0.0
        self._meter.restart(None)

    def next(self, limit: float, signals: Signals, *, may_grow: bool) -> Move:
        """
        Return the limit for the time until the next signals.

        Args:
            limit: Up to now.
            signals: What was seen.
            may_grow: Whether the limit was what held requests back.
        """
        if not may_grow or self._meter.began_s is None:
            self._meter.restart(signals.now_s)
        if not may_grow:
            return Move(limit, "there are not enough rows to send", "input")
        work = self._meter.measure(limit, signals, self._least_work(limit))
        waiting = self._meter.waiting(min(limit, signals.in_flight))
        if (
            work is None
            and self._added_wait(limit, waiting) > MOSTLY_WAITING
            and self._meter.is_under_way(signals.now_s)
        ):
            work = 0.0
        if work is None:
            return Move(limit, "measures the work per second", self._bottleneck)
        move = self._judge(Seen(limit, work, waiting))
        if round(move.limit) != round(limit):
            self._has_looked_again = False
            self._meter.restart(signals.now_s)
        else:
            self._meter.go_on(signals.now_s)
        return move

    def _least_work(self, limit: float) -> float:
        """A larger limit that brings less than this is not measured to the end: that would only cost."""
        return CLEARLY_WORSE * self._base.work if self._base is not None and limit > self._base.limit else 0.0

    def _added_wait(self, limit: float, waiting: float | None) -> float:
        """Of the requests that a larger limit has added, the share that waits."""
        if self._base is None or waiting is None or self._base.waiting is None or limit <= self._base.limit:
            return 0.0
        return (waiting - self._base.waiting) / (limit - self._base.limit)

    def _judge(self, seen: Seen) -> Move:
        base = self._base
        if base is None:
            self._base = seen
            return self._try_more(seen)
        if seen.limit == base.limit:
            return self._look_again(seen, base)
        if self._is_better(seen, base):
            return self._keep(seen, base)
        self._bottleneck = "server"
        if seen.limit < base.limit and (again := self._measure_again(seen, base)):
            return again
        change = f"{seen.work / base.work - 1:+.0%} work per second" if seen.work else "they would only wait"
        reason = f"{seen.limit:.0f} in flight: {change}, not worth it"
        if seen.limit < base.limit:
            self._usual_waiting = base.waiting or 0.0
            return self._rest(base, reason)
        self._too_many = seen.limit
        tried = self._without_queue(base) or self._that_run(seen, base)
        return self._rest(base, reason) if tried is None else Move(tried, reason, "server")

    def _is_better(self, seen: Seen, base: Seen) -> bool:
        change = seen.work / base.work if base.work else math.inf
        if seen.limit < base.limit:
            spared = 0.0 if base.waiting is None or seen.waiting is None else base.waiting - seen.waiting
            if spared < MIN_SPARED * (base.limit - seen.limit):
                return change >= (MIN_GAIN_OF_LESS if seen.waiting is None else 1.0)
            kept = MOST_KEPT if seen.limit > 0.9 * base.limit else KEPT
            return seen.work >= kept * max(base.work, self._most_work)
        elasticity = math.log(max(0.01, change)) / math.log(seen.limit / base.limit)
        is_waiting = self._added_wait(seen.limit, seen.waiting) > MAX_WAITING and elasticity < CLEAR_ELASTICITY
        return elasticity >= MIN_ELASTICITY and not is_waiting

    def _keep(self, seen: Seen, base: Seen) -> Move:
        self._base, self._has_grown = seen, seen.limit > base.limit
        self._most_work = 0.0 if self._has_grown else max(base.work, self._most_work)
        if not self._has_grown:
            return self._rest(seen, f"{base.limit:.0f} in flight brought no more work per second")
        if _new_wait(seen, base) > NEW_QUEUE * seen.limit:
            return Move(seen.limit, "looks again at those that wait", "server")
        return self._try_more(seen)

    def _measure_again(self, seen: Seen, base: Seen) -> Move | None:
        """A smaller limit that brings less: perhaps because of what was thrown out before; None where that is clear."""
        if self._has_looked_again or seen.waiting is None or seen.work < MAY_BE_KEPT * base.work:
            return None
        self._has_looked_again = True
        fewer = self._without_queue(seen)
        if fewer is not None and fewer >= SMALLEST_LESS * base.limit:
            return self._try_less(fewer, seen)
        return Move(seen.limit, "looks again at those that wait", "server")

    def _queue(self, seen: Seen) -> float:
        """Requests that wait, more than do without a queue."""
        return 0.0 if seen.waiting is None or seen.limit <= FEWEST else seen.waiting - self._usual_waiting

    def _without_queue(self, seen: Seen) -> float | None:
        """A limit without those that wait; None where they are few, or the answers do not tell."""
        queue = self._queue(seen)
        if queue <= MAX_QUEUE * seen.limit:
            return None
        return max(FEWEST, SMALLEST_LESS * seen.limit, (1 + SMALL_QUEUE) * seen.limit - QUEUE_CUT * queue)

    @staticmethod
    def _that_run(seen: Seen, base: Seen) -> float | None:
        """Of too many requests those that do not wait, as far as that is known; None where no more run than before."""
        new_wait = _new_wait(seen, base)
        run = (1 + NEW_QUEUE) * (seen.limit - new_wait) if new_wait else math.inf
        return _if_more(min(run, math.sqrt(base.limit * seen.limit)), base.limit)

    def _try_more(self, seen: Seen) -> Move:
        tried: float | None = min(self._max_limit, seen.limit * self._step)
        if self._too_many is not None and self._too_many > seen.limit:
            tried = _if_more(math.sqrt(seen.limit * self._too_many), seen.limit)
        if tried is None:
            return self._rest(seen, f"more than {seen.limit:.0f} in flight would not be worth it")
        return self._try(tried)

    def _try(self, limit: float) -> Move:
        return Move(limit, f"tries whether {limit:.0f} in flight bring more work per second", self._bottleneck)

    @staticmethod
    def _try_less(limit: float, seen: Seen) -> Move:
        return Move(limit, f"tries whether {limit:.0f} in flight are enough: some of {seen.limit:.0f} wait", "server")

    def _rest(self, base: Seen, reason: str) -> Move:
        self._too_many, self._step, self._rests_left = None, NEXT_STEP, self._num_rests
        self._num_rests = min(MOST_EPOCHS_AT_REST, 2 * self._num_rests)
        return Move(base.limit, reason, "server")

    def _look_again(self, seen: Seen, base: Seen) -> Move:
        """The work at the limit that was found: rest, or try again where it has changed or rested long enough."""
        has_changed = abs(seen.work / base.work - 1) > MAX_CHANGE if base.work else True
        self._base = seen if has_changed else _mean(seen, base, is_work_known=not self._has_grown)
        self._has_grown = False
        self._rests_left -= 1
        if not has_changed and (fewer := self._without_queue(self._base)):
            return self._try_less(fewer, seen)
        if not has_changed and self._queue(self._base) > SMALL_QUEUE * seen.limit:
            return self._try_less(NEARLY_ALL * seen.limit, seen)
        if not has_changed and self._base.work < KEPT * self._most_work:
            self._most_work = self._base.work
            return self._try(seen.limit / NEARLY_ALL)
        if self._rests_left > 0 and not has_changed:
            return Move(seen.limit, "more in flight brought no more work per second", "server")
        if has_changed:
            self._most_work = 0.0
            self._step, self._num_rests = math.sqrt(FIRST_STEP), NUM_EPOCHS_AT_REST
        self._tries_less = not self._tries_less and not has_changed and seen.waiting is None
        return self._try(max(1.0, 0.8 * seen.limit)) if self._tries_less else self._try_more(seen)


def _new_wait(seen: Seen, base: Seen) -> float:
    """Requests that wait at a larger limit, and would not if as many of all did as before."""
    if seen.waiting is None or base.waiting is None:
        return 0.0
    return max(0.0, seen.waiting - base.waiting * seen.limit / base.limit)


def _mean(seen: Seen, base: Seen, *, is_work_known: bool) -> Seen:
    """Two measurements of one limit as one. `is_work_known`: the first was not made while the wait grew."""
    work = 0.5 * (seen.work + base.work) if is_work_known else seen.work
    is_told = seen.waiting is not None and base.waiting is not None
    waiting = 0.5 * ((seen.waiting or 0.0) + (base.waiting or 0.0)) if is_told else seen.waiting
    return Seen(seen.limit, work, waiting)


def _if_more(tried: float, limit: float) -> float | None:
    """None where they are near each other."""
    return tried if tried >= SMALLEST_STEP * limit else None
