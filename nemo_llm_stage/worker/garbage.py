"""
Fewer garbage collections while workers run, and what their memory allocators keep given back.

Python looks for reference cycles after every 700 new objects, and a row makes dozens that live on. Workers leave no
cycles behind but those of errors, so that with the thresholds here memory stays the same, and a row costs 15 to 20 %
less CPU. Source: benchmarks/bench_stage.py, November 2026.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time

import pyarrow as pa

THRESHOLDS = (20_000, 10, 10)
"""New objects before a collection; of each generation's collections, those before one of the next. See `gc`."""


TRIM_INTERVAL_S = 5.0
"""Between two times that the C library is asked to give memory back, which takes it some milliseconds."""


class _Process:
    """This process's thresholds before they were raised, and the workers that want them so."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.workers: set[int] = set()
        self.thresholds = gc.get_threshold()
        self.next_trim_monotonic_s = 0.0


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


def give_memory_back() -> None:
    """Return what the allocators of Arrow, for this thread, and of the C library keep without need."""
    pa.default_memory_pool().release_unused()
    now = time.monotonic()
    if sys.platform == "linux" and now > _PROCESS.next_trim_monotonic_s:
        _PROCESS.next_trim_monotonic_s = now + TRIM_INTERVAL_S
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
