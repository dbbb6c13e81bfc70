"""
Notices that answers come in another script than at first: a model that slips from English into Chinese, say.

Looks at the few rows that are sampled for people anyway, so it costs nothing per row. Tells scripts apart, not the
languages that share one. Knows texts; knows nothing of runs.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

from nemo_llm_stage.worker.control.differ import differ

NUM_TEXTS = 100
"""Sampled answers that say how the job is; and those of the window."""

MIN_LETTERS = 10
"""An answer with fewer, e.g. a label or a number, says nothing."""

SCRIPTS = {
    "Latin": re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]"),
    "Greek": re.compile("[\u0370-\u03ff]"),
    "Cyrillic": re.compile("[\u0400-\u04ff]"),
    "Hebrew": re.compile("[\u0590-\u05ff]"),
    "Arabic": re.compile("[\u0600-\u06ff]"),
    "Devanagari": re.compile("[\u0900-\u097f]"),
    "Thai": re.compile("[\u0e00-\u0e7f]"),
    "Chinese or Japanese": re.compile("[\u3040-\u30ff\u4e00-\u9fff]"),
    "Korean": re.compile("[\uac00-\ud7af]"),
}
"""Name → its letters. Source: the blocks of Unicode."""


def script_of(text: str) -> str | None:
    """Return the script that most letters of a text are of; None for one with hardly any letters."""
    counts = {name: len(letters.findall(text)) for name, letters in SCRIPTS.items()}
    name = max(counts, key=lambda name: counts[name])
    return name if counts[name] >= MIN_LETTERS else None


class ScriptDrift:
    """Compares the newest sampled answers with the first ones. Not for several threads."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._window: deque[str] = deque(maxlen=NUM_TEXTS)
        self._is_told = False

    def note(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take note of sampled rows; see `nemo_llm_stage.worker.samples`."""
        for row in rows:
            for text in row["values"].values():
                script = script_of(text)
                if script is not None:
                    (self._first if len(self._first) < NUM_TEXTS else self._window).append(script)

    def look(self) -> list[str]:
        """Return what has changed, in words, once."""
        if self._is_told or len(self._window) < NUM_TEXTS:
            return []
        usual = Counter(self._first).most_common(1)[0][0]
        others = Counter(script for script in self._window if script != usual)
        before, now = len(self._first) - self._first.count(usual), sum(others.values())
        if not differ(before, NUM_TEXTS, now, NUM_TEXTS):
            return []
        self._is_told = True
        most = others.most_common(1)[0][0] if others else usual
        text = f"{now / NUM_TEXTS:.0%} of the last {NUM_TEXTS} sampled answers are in another script than {usual}"
        return [f"{text}, most of them in {most}; of the first {NUM_TEXTS} it was {before / NUM_TEXTS:.0%}"]
