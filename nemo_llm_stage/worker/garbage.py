"""
Fewer garbage collections while workers run; memory that the allocators hold without need is given back.

Python looks for reference cycles after every 700 new objects, and each row makes dozens of objects that live on.
Workers make no cycles except in errors, so the higher thresholds cost no memory and save 15 to 20 % of a row's CPU.
Source: benchmarks/bench_stage.py, November 2026.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time

import pyarrow as pa

THRESHOLDS = (20_000, 10, 10)
"""The arguments of `gc.set_threshold`; Python's own are 700, 10, 10."""


TRIM_INTERVAL_S = 5.0
"""Seconds between two calls of `malloc_trim`, which takes some milliseconds."""


class _Process:
    """This process's thresholds before they were raised, and the workers that need them raised."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.workers: set[int] = set()
        self.thresholds = gc.get_threshold()
        self.next_trim_monotonic_s = 0.0


_PROCESS = _Process()


def collect_rarely(worker: object) -> None:
    """Raise the thresholds of this process until `collect_as_usual` is called for the last of its workers."""
    with _PROCESS.lock:
        if not _PROCESS.workers:
            _PROCESS.thresholds = gc.get_threshold()
            gc.set_threshold(*THRESHOLDS)
        _PROCESS.workers.add(id(worker))


def collect_as_usual(worker: object) -> None:
    """Undo `collect_rarely` for this worker. Safe to call twice."""
    with _PROCESS.lock:
        if id(worker) in _PROCESS.workers:
            _PROCESS.workers.remove(id(worker))
            if not _PROCESS.workers:
                gc.set_threshold(*_PROCESS.thresholds)


def give_memory_back() -> None:
    """Give back the unused memory that Arrow's allocator (for this thread) and the C library hold."""
    pa.default_memory_pool().release_unused()
    now = time.monotonic()
    if sys.platform == "linux" and now > _PROCESS.next_trim_monotonic_s:
        _PROCESS.next_trim_monotonic_s = now + TRIM_INTERVAL_S
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
