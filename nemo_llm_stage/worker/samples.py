"""
A few of the rows that a worker finishes, for people who watch. Costs a look at the clock for every other row.

Knows outcomes; knows nothing of files or of who watches.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from nemo_llm_stage.core import Completion, Outcome, Usage
from nemo_llm_stage.dataset.state.json_file import now
from nemo_llm_stage.errors import SkippedError
from nemo_llm_stage.stage.runtime import OnDone
from nemo_llm_stage.text import one_line

INTERVAL_S = 0.2
"""Least seconds between two samples."""

MAX_SAMPLES = 10
MAX_CHARS = 200


class Samples:
    """The newest sampled rows. Rows are noted on the event loop, and taken by another thread."""

    def __init__(self) -> None:
        self._rows: deque[dict[str, Any]] = deque(maxlen=MAX_SAMPLES)
        self._next_monotonic_s = 0.0

    def watching(self, on_done: OnDone) -> OnDone:
        """Return `on_done` with a look at each outcome after it."""

        def watched(outcome: Outcome) -> None:
            on_done(outcome)
            if time.monotonic() >= self._next_monotonic_s:
                self._next_monotonic_s = time.monotonic() + INTERVAL_S
                self._rows.append(_sample_of(outcome))

        return watched

    def take(self) -> tuple[dict[str, Any], ...]:
        """Return the samples since the last call, oldest first."""
        rows = []
        while self._rows:
            rows.append(self._rows.popleft())
        return tuple(rows)


def words_of(sample: Mapping[str, Any]) -> list[str]:
    """Return what became of each column in a sample: its value, that it failed, or that it was skipped."""
    words = [f"{name}: {text}" for name, text in sample["values"].items()]
    for name, text in sample["errors"].items():
        is_skipped = text.startswith(f"{SkippedError.kind}:")
        words.append(f"{name} {text}" if is_skipped else f"{name} failed: {text}")
    return words


def _sample_of(outcome: Outcome) -> dict[str, Any]:
    """
    Return a row's values and errors as short texts: ``at``, ``values`` and ``errors`` by output column.

    ``request`` describes its last answered request: seconds, tokens, model and server.
    """
    values, errors = {}, {}
    for name, result in outcome.items():
        if result.error is None:
            values[name] = one_line(str(result.value)[: 4 * MAX_CHARS], MAX_CHARS)
        else:
            errors[name] = one_line(result.error, MAX_CHARS)
    sample: dict[str, Any] = {"at": now(), "values": values, "errors": errors}
    completions = [result.completion for result in outcome.values() if result.is_asked and result.completion]
    return sample | ({"request": _request(completions[-1])} if completions else {})


def _request(completion: Completion) -> dict[str, Any]:
    usage = completion.usage or Usage()
    return {
        "seconds": completion.latency_s,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "model": one_line(completion.model or "", MAX_CHARS),
        "server": one_line(completion.endpoint or "", MAX_CHARS),
    }
