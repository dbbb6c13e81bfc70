"""
One event loop in a thread of its own, for the life of its owner.

A loop per call would break pooled connections at the second call; this one stays. Knows nothing of what runs on it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from nemo_llm_stage.errors import RunError

T = TypeVar("T")

WAKE_UP_S = 0.2
"""How often a waiting thread looks for an interrupt. Once polars is imported, SIGINT does not end a wait by itself."""


def result_of(future: concurrent.futures.Future[T]) -> T:
    """Wait for `future` and return its result. If this thread is interrupted, e.g. by Ctrl-C, `future` is cancelled."""
    try:
        while not concurrent.futures.wait([future], WAKE_UP_S).done:
            pass
        return future.result()
    except BaseException:
        future.cancel()
        raise


class LoopThread:
    """An event loop that runs in a daemon thread until `close`. Its methods may be called from any other thread."""

    def __init__(self, name: str = "nemo-llm-stage") -> None:
        self._loop = _new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """
        Start `coroutine` on the loop and return at once.

        Raises:
            RunError: The loop has ended, because it was closed or something on it raised `SystemExit`.
        """
        if not self._thread.is_alive():
            coroutine.close()
            raise RunError("the event loop has ended; close the stage to begin anew.")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` on the loop and return its result. An interrupt here cancels it there."""
        return result_of(self.submit(coroutine))

    def call(self, function: Callable[[], object]) -> None:
        """Call `function` on the loop soon, unless the loop has ended. What it raises is logged by the loop."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    def close(self, last: Callable[[], Coroutine[Any, Any, object]] | None = None) -> None:
        """
        Cancel what still runs on the loop, await `last`, and stop the loop and its thread. Safe to call twice.

        Args:
            last: Closes what the tasks use. The tasks are cancelled first, or they would open it again.
        """
        if self._loop.is_closed():
            return
        if self._thread.is_alive():  # a loop that broke has ended its thread, and would never answer
            self.run(_cancel_the_rest())
            if last is not None:
                self.run(last())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    _fill_standard_files()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _fill_standard_files() -> None:
    """Open what stands for no file where one of stdin, stdout and stderr is closed: uvloop aborts on a socket there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


async def _cancel_the_rest() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
