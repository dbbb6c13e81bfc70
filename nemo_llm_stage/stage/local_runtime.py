"""
The runtime of a stage in this process: opened once, closed, and forgotten by copies and by forked children.

Knows processes; knows nothing of rows.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from nemo_llm_stage.stage.runtime import Runtime


class LocalRuntime:
    """
    The runtime of a stage in this process, opened at first use.

    A pickled or copied one is closed, and so is the one that a forked child inherits: threads do not survive a fork.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.current: Runtime | None = None
        _local_runtimes.add(self)

    def open(self, make: Callable[[], Runtime]) -> Runtime:
        """Return the open runtime; `make` one where there is none."""
        with self._lock:
            if self.current is None:
                self.current = make()
            return self.current

    def when_quiet(self) -> concurrent.futures.Future[None]:
        """See `Stage.when_quiet`; one that is closed is quiet."""
        runtime = self.current
        if runtime is not None:
            return runtime.when_quiet()
        quiet: concurrent.futures.Future[None] = concurrent.futures.Future()
        quiet.set_result(None)
        return quiet

    def close(self) -> None:
        """Close the runtime. Safe to call twice."""
        with self._lock:
            runtime, self.current = self.current, None
        if runtime is not None:
            runtime.close()

    def forget(self) -> None:
        """Start closed in a forked child."""
        if self.current is not None:
            _parents_runtimes.append(self.current)
        self._lock, self.current = threading.Lock(), None

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalRuntime, ()


_local_runtimes: weakref.WeakSet[LocalRuntime] = weakref.WeakSet()
_parents_runtimes: list[Runtime] = []
"""Kept for ever in a forked child: collecting them would close what the parent still uses."""


def _forget_runtimes() -> None:
    for runtime in list(_local_runtimes):
        runtime.forget()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_runtimes)
