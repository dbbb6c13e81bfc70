"""
The calls to workers that are pending, and the time: what the loop of a run waits for.

Another class with the same methods may stand for it where time is simulated.
"""

from __future__ import annotations

import queue
import time
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Calls(Generic[T]):
    """Pending calls, each with what it is about. Waiting costs as much as there is news, however many are pending."""

    def __init__(self) -> None:
        self._ended: queue.SimpleQueue[T] = queue.SimpleQueue()

    def now_s(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def add(self, call: Future[Any], about: T) -> None:
        """Add a pending call."""
        call.add_done_callback(lambda _: self._ended.put(about))

    def wait(self, timeout_s: float) -> list[T]:
        """Return what the calls that have ended are about, each once; wait for the first of them at most so long."""
        ended: list[T] = []
        try:
            ended.append(self._ended.get(timeout=max(0.0, timeout_s)))
            while True:
                ended.append(self._ended.get_nowait())
        except queue.Empty:
            return ended
