"""
The limit by the work done per second: try a larger one, and keep it where it brings more.

For servers that tell nothing of their queue. Latency alone says little, since it grows with the batch by design; the
work per second grows until the server is full and is flat from there on. Where it grows still, but those that were
added wait before their first token (`waits`), the server is full too: its KV cache throws requests out. Pure.

Source: the hill climbing of .NET's thread pool is the precedent; in a model of a server it reached 94 to 100 % of the
best throughput, latency gradients 28 to 53 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nemo_llm_stage.client.governor.expected import RunningMean
from nemo_llm_stage.client.governor.signals import Bottleneck, Move, Signals
from nemo_llm_stage.client.governor.waits import Waits

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
"""A smaller limit is kept where the work is so much more."""

MAX_QUEUE, SMALLEST_LESS = 0.1, 0.7
"""Where more than this share of the limit waits, a limit without them is tried; the smallest, as a share."""

MAX_LOSS_OF_LESS, MIN_SPARED = 0.96, 0.3
"""
It is kept where the work is about what it was and this share of the requests that are left out waits no more: what does
not wait is not thrown out of a KV cache either. Other waits, as for an address far away, are as long as before.
"""

FEWEST = 16
"""No smaller limit is tried because requests wait."""

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
NUM_EPOCHS_AT_REST, MOST_EPOCHS_AT_REST = 6, 24
"""Measurements between two trials at first, and after trials that brought nothing."""

MAX_CHANGE = 0.15
"""A change of the work at the same limit from which on the server, or the rows, are not what they were."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was measured at a limit. `waiting`: requests that wait, about; None where the answers do not tell."""

    limit: float
    work: float
    waiting: float | None


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
        self._base: _Seen | None = None
        self._step = FIRST_STEP
        self._too_many: float | None = None
        self._usual_waiting = 0.0
        self._num_rests, self._rests_left = NUM_EPOCHS_AT_REST, 0
        self._output_tokens = RunningMean()
        self._tries_less = False
        self._latency_s: float | None = None
        self._bottleneck: Bottleneck = "unknown"
        self._began_s: float | None = None
        self._measured_from_s: float | None = None
        self._restart(None)

    def note_answer(self, sent_at_s: float, latency_s: float, tokens: float, output_tokens: float) -> None:
        """Take note of an answer: when it was asked for, its time from then on, its work and its length."""
        self._num_answers += 1
        if self._began_s is not None and sent_at_s >= self._began_s:
            self._num_new += 1
            self._waits.add(latency_s, output_tokens)
        self._output_tokens.add(output_tokens)
        self._sum_latency_s += latency_s
        self._sum_tokens += tokens

    def reset(self) -> None:
        """Forget what was measured, e.g. because something else has moved the limit."""
        self._base, self._step, self._rests_left = None, NEXT_STEP, 0
        self._too_many, self._num_rests, self._usual_waiting = None, NUM_EPOCHS_AT_REST, 0.0
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
        waiting = self._waiting(min(limit, signals.in_flight))
        if work is None and self._added_wait(limit, waiting) > MOSTLY_WAITING and self._is_under_way(signals):
            work = 0.0
        if work is None:
            return Move(limit, "measures the work per second", self._bottleneck)
        move = self._judge(_Seen(limit, work, waiting))
        if round(move.limit) != round(limit):
            self._restart(signals.now_s)
        else:  # all that is in flight was sent at this limit
            self._measured_from_s, self._waits = signals.now_s, Waits()
            self._clear()
        return move

    def _restart(self, now_s: float | None) -> None:
        self._began_s = now_s
        self._measured_from_s = None
        self._num_new = 0
        self._waits = Waits()
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
        return self._base is not None and limit > self._base.limit and work < CLEARLY_WORSE * self._base.work

    def _is_under_way(self, signals: Signals) -> bool:
        return self._began_s is not None and signals.now_s - self._began_s >= MIN_WARM_UP_S

    def _waiting(self, in_flight: float) -> float | None:
        share = self._waits.share(self._output_tokens.value or 0.0)
        return None if share is None else share * in_flight

    def _added_wait(self, limit: float, waiting: float | None) -> float:
        """Of the requests that a larger limit has added, the share that waits."""
        if self._base is None or waiting is None or self._base.waiting is None or limit <= self._base.limit:
            return 0.0
        return (waiting - self._base.waiting) / (limit - self._base.limit)

    def _judge(self, seen: _Seen) -> Move:
        base = self._base
        if base is None:
            self._base = seen
            return self._try_more(seen)
        if seen.limit == base.limit:
            return self._look_again(seen, base)
        if self._is_better(seen, base):
            self._base = seen
            if self._queue(seen) is not None:  # measured while it grew
                return Move(seen.limit, "looks again at those that wait", "server")
            return self._try_more(seen)
        self._bottleneck = "server"
        change = f"{seen.work / base.work - 1:+.0%} work per second" if seen.work else "they would only wait"
        reason = f"{seen.limit:.0f} in flight: {change}, not worth it"
        if seen.limit < base.limit:
            self._usual_waiting = base.waiting or 0.0
            return self._rest(base, reason)
        self._too_many = seen.limit
        tried = self._without_queue(base) or self._between(base.limit, seen.limit)
        return self._rest(base, reason) if tried is None else Move(tried, reason, "server")

    def _is_better(self, seen: _Seen, base: _Seen) -> bool:
        change = seen.work / base.work if base.work else math.inf
        if seen.limit < base.limit:
            spared = 0.0 if base.waiting is None or seen.waiting is None else base.waiting - seen.waiting
            is_spared = spared >= MIN_SPARED * (base.limit - seen.limit)
            return change >= (MAX_LOSS_OF_LESS if is_spared else MIN_GAIN_OF_LESS)
        elasticity = math.log(max(0.01, change)) / math.log(seen.limit / base.limit)
        is_waiting = self._added_wait(seen.limit, seen.waiting) > MAX_WAITING and elasticity < CLEAR_ELASTICITY
        return elasticity >= MIN_ELASTICITY and not is_waiting

    def _queue(self, seen: _Seen) -> float | None:
        """Requests that wait, more than do without a queue; None where they are few, or the answers do not tell."""
        queue = 0.0 if seen.waiting is None else seen.waiting - self._usual_waiting
        return queue if queue > MAX_QUEUE * seen.limit and seen.limit > FEWEST else None

    def _without_queue(self, seen: _Seen) -> float | None:
        queue = self._queue(seen)
        return (
            None if queue is None else max(FEWEST, SMALLEST_LESS * seen.limit, (1 + MAX_QUEUE / 2) * seen.limit - queue)
        )

    @staticmethod
    def _between(limit: float, too_many: float) -> float | None:
        """A limit between one that is good and one that is too many; None where they are near each other."""
        step = math.sqrt(too_many / limit)
        return limit * step if step >= SMALLEST_STEP else None

    def _try_more(self, seen: _Seen) -> Move:
        if self._too_many is not None and self._too_many > seen.limit:
            tried = self._between(seen.limit, self._too_many)
        else:
            tried = min(self._max_limit, seen.limit * self._step)
        if tried is None:
            return self._rest(seen, f"more than {seen.limit:.0f} in flight would not be worth it")
        return self._try(tried)

    def _try(self, limit: float) -> Move:
        return Move(limit, f"tries whether {limit:.0f} in flight bring more work per second", self._bottleneck)

    def _rest(self, base: _Seen, reason: str) -> Move:
        self._too_many, self._step, self._rests_left = None, NEXT_STEP, self._num_rests
        self._num_rests = min(MOST_EPOCHS_AT_REST, 2 * self._num_rests)
        return Move(base.limit, reason, "server")

    def _look_again(self, seen: _Seen, base: _Seen) -> Move:
        """The work at the limit that was found: rest, or try again where it has changed or rested long enough."""
        has_changed = abs(seen.work / base.work - 1) > MAX_CHANGE if base.work else True
        self._base = replace(seen, work=seen.work if has_changed else 0.5 * (seen.work + base.work))
        self._rests_left -= 1
        fewer = self._without_queue(seen)
        if fewer is not None and not has_changed:
            reason = f"tries whether {fewer:.0f} in flight are enough: about {seen.limit - fewer:.0f} wait"
            return Move(fewer, reason, "server")
        if self._rests_left > 0 and not has_changed:
            return Move(seen.limit, "more in flight brought no more work per second", "server")
        if has_changed:
            self._step, self._num_rests = math.sqrt(FIRST_STEP), NUM_EPOCHS_AT_REST
        self._tries_less = not self._tries_less and not has_changed and seen.waiting is None
        return self._try(max(1.0, 0.8 * seen.limit)) if self._tries_less else self._try_more(seen)
