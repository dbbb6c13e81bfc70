"""
Notices that answers change during a run: a sliding window is compared with the first 500 rows.

A model that was replaced, a quota that is used up or an input that turns into something else shows in rates (failed,
filtered, cut off, wasted requests) and in the mean length of the answers. Knows counts; knows nothing of rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.worker.control.differ import differ

NUM_FIRST_ROWS = 500
"""Rows that say how the job is; and, at least, those of the window."""

MIN_RATIO = 1.5
"""Of the mean output tokens: half as many again, or two thirds."""

RATES: tuple[tuple[str, Callable[[Counters], tuple[int, int]]], ...] = (
    ("rows failed", lambda counters: (counters.num_failed, counters.num_rows)),
    ("rows were filtered or refused", lambda counters: (counters.errors.get("content_filter", 0), counters.num_rows)),
    ("rows could not be parsed", lambda counters: (counters.errors.get("parse", 0), counters.num_rows)),
    ("rows were cut off", lambda counters: (counters.num_cut_off, counters.num_rows)),
    ("requests were wasted", lambda counters: (counters.num_wasted_attempts, counters.num_attempts)),
)
"""Words, and of counts the part and the whole."""

ONLY_MORE = {"rows failed", "requests were wasted"}
"""Of these less is no news: an outage is over."""


class Drift:
    """Compares the newest rows with the first ones. Not for several threads."""

    def __init__(self) -> None:
        self._first: Counters | None = None
        self._window: deque[Counters] = deque()
        self._told: set[str] = set()

    def look(self, counters: Counters) -> list[str]:
        """
        Return what has left its range since the last call, in words; each thing once.

        Args:
            counters: What the run has counted so far.
        """
        if self._first is None:
            if counters.num_rows >= NUM_FIRST_ROWS:
                self._first = counters
                self._window.append(counters)
            return []
        if counters.num_rows > self._window[-1].num_rows:
            self._window.append(counters)
        while len(self._window) > 2 and counters.num_rows - self._window[1].num_rows >= NUM_FIRST_ROWS:
            self._window.popleft()
        if counters.num_rows - self._window[0].num_rows < NUM_FIRST_ROWS:
            return []
        news = [*self._rates(self._first, counters), *self._length(self._first, counters)]
        fresh = [(subject, text) for subject, text in news if subject not in self._told]
        self._told.update(subject for subject, _ in fresh)
        return [text for _, text in fresh]

    def _rates(self, first: Counters, now: Counters) -> list[tuple[str, str]]:
        texts = []
        for words, of in RATES:
            (part, whole), (old_part, old_whole) = of(now), of(self._window[0])
            part, whole = part - old_part, whole - old_whole
            before_part, before_whole = of(first)
            is_better = words in ONLY_MORE and part * before_whole < before_part * whole
            if whole and before_whole and not is_better and differ(before_part, before_whole, part, whole):
                text = f"{part / whole:.0%} of the last {whole:,} {words}; of the first {before_whole:,} it was "
                texts.append((words, f"{text}{before_part / before_whole:.0%}"))
        return texts

    def _length(self, first: Counters, now: Counters) -> list[tuple[str, str]]:
        answers = _num_answers(now) - _num_answers(self._window[0])
        tokens = now.output_tokens - self._window[0].output_tokens
        if not (answers and tokens and _num_answers(first) and first.output_tokens):
            return []
        mean, before = tokens / answers, first.output_tokens / _num_answers(first)
        if 1 / MIN_RATIO < mean / before < MIN_RATIO:
            return []
        text = f"an answer has {mean:,.0f} output tokens on average now; in the first rows it had {before:,.0f}"
        return [("length", text)]


def _num_answers(counters: Counters) -> int:
    """Return how many answers the servers gave: rows with the very same request share one."""
    return counters.num_attempts - counters.num_rate_limited - counters.num_failed_answers
