"""
How a worker ends in order: it sends nothing more, waits for the answers in flight, and abandons the rest.

Lies between a worker's tasks, which submit rows, and its stage. Knows nothing of files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Any, TypeVar

from nemo_llm_stage.stage.stage import Stage
from nemo_llm_stage.worker.orders import Orders

T = TypeVar("T")


class Drain:
    """
    Lets rows through until the drain begins. Safe for several threads.

    Args:
        stage: That the rows are submitted to.

    Attributes:
        is_over: Whether the unfinished rows are abandoned.
    """

    def __init__(self, stage: Stage) -> None:
        self.is_over = False
        self._stage = stage
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._is_begun = False
        self._quiet: Future[None] | None = None
        self._open: set[Future[Any]] = set()

    def submit(self, start: Callable[[], Future[T]]) -> Future[T]:
        """
        Return `start()`, which submits rows.

        A task that has more rows once the drain has begun waits here while its earlier rows finish.

        Raises:
            concurrent.futures.CancelledError: The drain is over.
        """
        with self._lock:
            if not self._is_begun:
                future = start()
                self._open.add(future)
                future.add_done_callback(self._open.discard)
                return future
        self._ended.wait()
        raise CancelledError

    def follow(self, orders: Orders) -> None:
        """Begin to drain if `orders` say so, and end it once nothing is in flight. Call it again and again."""
        with self._lock:
            if self.is_over:  # an order that was on its way must not hold back whoever uses the stage next
                return
            self._is_begun = self._is_begun or orders.is_draining
            throttle = replace(orders.throttle, is_paused=True) if self._is_begun else orders.throttle
            self._stage.throttle(throttle)
            if self._is_begun and self._quiet is None:
                self._quiet = self._stage.when_quiet()
        if orders.is_overdue or (self._quiet is not None and self._quiet.done()):
            self.end()

    def end(self) -> None:
        """Abandon the rows that are not finished. Tasks that miss some of theirs raise `CancelledError`."""
        with self._lock:
            self._is_begun = self.is_over = True
        self._ended.set()
        for future in list(self._open):
            future.cancel()
