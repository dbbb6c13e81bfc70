"""
Fewer garbage collections while workers run.

Python looks for reference cycles after every 700 new objects, and a row makes dozens that live on. Workers leave no
cycles behind but those of errors, so that with the thresholds here memory stays the same, and a row costs 15 to 20 %
less CPU. Source: benchmarks/bench_stage.py, November 2026.
"""

from __future__ import annotations

import gc
import threading

THRESHOLDS = (20_000, 10, 10)
"""New objects before a collection; of each generation's collections, those before one of the next. See `gc`."""


class _Process:
    """This process's thresholds before they were raised, and the workers that want them so."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.workers: set[int] = set()
        self.thresholds = gc.get_threshold()


_PROCESS = _Process()


def collect_rarely(worker: object) -> None:
    """Raise the thresholds of this process, until `collect_as_usual` was called for every such worker."""
    with _PROCESS.lock:
        if not _PROCESS.workers:
            _PROCESS.thresholds = gc.get_threshold()
            gc.set_threshold(*THRESHOLDS)
        _PROCESS.workers.add(id(worker))


def collect_as_usual(worker: object) -> None:
    """Let go of `collect_rarely`. Safe to call twice."""
    with _PROCESS.lock:
        if id(worker) in _PROCESS.workers:
            _PROCESS.workers.remove(id(worker))
            if not _PROCESS.workers:
                gc.set_threshold(*_PROCESS.thresholds)
