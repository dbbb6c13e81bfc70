"""
The work per second at one limit, from the answers alone. Pure.

The work is that of the answers that come, divided by the time that they took, for each request in flight. That is the
work per second by Little's law, with much less noise than counting answers: a long answer took long.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_llm_stage.client.governor.expected import RunningMean
from nemo_llm_stage.client.governor.signals import Signals
from nemo_llm_stage.client.governor.waits import Waits

MIN_WARM_UP_S, MIN_MEASURING_S, MAX_MEASURING_S = 2.0, 3.0, 60.0
NEW_SHARE = 0.5
"""
A limit is measured once so many answers, as a share of the requests in flight, are of requests that were sent under it.
Before, answers of requests that met a shorter queue make it look better than it is: two full servers were doubled and
doubled, up to 2,048 in flight. Those of a longer queue make it look worse.
"""

NUM_MEASURED = 32
"""Answers that make a measurement."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured at a limit. `waiting`: requests that wait, about; None where the answers do not tell."""

    limit: float
    work: float
    waiting: float | None


class WorkMeter:
    """
    Measures one limit after another.

    Attributes:
        began_s: Since when the limit is what it is; requests sent before do not count. None: nothing is measured.
    """

    def __init__(self) -> None:
        self.began_s: float | None = None
        self._output_tokens = RunningMean()
        self._latency_s: float | None = None
        self.restart(None)

    def note_answer(self, sent_at_s: float, latency_s: float, tokens: float, output_tokens: float) -> None:
        """Take note of an answer: when it was asked for, its time from then on, its work and its length."""
        self._output_tokens.add(output_tokens)
        if self.began_s is None or sent_at_s < self.began_s:
            return
        self._num_new += 1
        self._num_answers += 1
        self._waits.add(latency_s, output_tokens)
        self._sum_latency_s += latency_s
        self._sum_tokens += tokens

    def restart(self, now_s: float | None) -> None:
        """Begin with another limit at `now_s`; None for later."""
        self.began_s = now_s
        self._measured_from_s: float | None = None
        self._num_new = 0
        self._waits = Waits()
        self._clear()

    def go_on(self, now_s: float) -> None:
        """Measure the same limit once more: all that is in flight was sent at it."""
        self._measured_from_s, self._waits = now_s, Waits()
        self._clear()

    def is_under_way(self, now_s: float) -> bool:
        """Whether the limit has been what it is for a moment."""
        return self.began_s is not None and now_s - self.began_s >= MIN_WARM_UP_S

    def waiting(self, in_flight: float) -> float | None:
        """Return how many of the requests in flight wait, about; None where the answers do not tell."""
        share = self._waits.share(self._output_tokens.value or 0.0)
        return None if share is None else share * in_flight

    def measure(self, limit: float, signals: Signals, least: float) -> float | None:
        """
        Return the work per second; None where it is not known yet.

        Args:
            limit: Up to now.
            signals: What was seen.
            least: Less than this is told at once.
        """
        if self._num_answers:
            self._latency_s = self._sum_latency_s / self._num_answers
        if self._latency_s is None or self.began_s is None:
            return None
        if self._measured_from_s is None:  # requests of the limit before are still coming back
            is_new = self._num_new >= NEW_SHARE * min(limit, signals.in_flight)
            if is_new and signals.now_s - self.began_s >= max(MIN_WARM_UP_S, 1.2 * self._latency_s):
                self._measured_from_s = signals.now_s
                self._clear()
            return None
        self._sum_in_flight += signals.in_flight
        self._num_ticks += 1
        seconds = signals.now_s - self._measured_from_s
        work = self._work()
        if self._num_answers >= NUM_MEASURED // 2 and work < least:
            return work
        is_enough = seconds >= max(MIN_MEASURING_S, self._latency_s) and self._num_answers >= NUM_MEASURED
        is_too_long = seconds >= max(MAX_MEASURING_S, 3 * self._latency_s) and self._num_answers >= NUM_MEASURED // 4
        return work if is_enough or is_too_long else None

    def _clear(self) -> None:
        self._num_answers = 0
        self._sum_latency_s = self._sum_tokens = 0.0
        self._sum_in_flight = 0.0
        self._num_ticks = 0

    def _work(self) -> float:
        if self._sum_latency_s <= 0:
            return 0.0
        return self._sum_in_flight / self._num_ticks * self._sum_tokens / self._sum_latency_s
