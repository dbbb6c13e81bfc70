"""Garbage collection while workers run."""

from __future__ import annotations

import gc

from nemo_llm_stage.worker.garbage import THRESHOLDS, collect_as_usual, collect_rarely


def test_thresholds_are_raised_until_the_last_worker_stops() -> None:
    """And are then what they were."""
    before = gc.get_threshold()
    first, second = object(), object()
    collect_rarely(first)
    collect_rarely(second)
    collect_as_usual(first)
    collect_as_usual(first)
    assert gc.get_threshold() == THRESHOLDS
    collect_as_usual(second)
    assert gc.get_threshold() == before
