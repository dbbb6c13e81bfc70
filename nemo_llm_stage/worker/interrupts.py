"""
Ctrl-C and SIGTERM become orders to the workers: the first one drains, the second one stops at once.

Knows signals and time; knows nothing of what runs.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any, Self

from nemo_llm_stage.worker.orders import NO_CONTROL, Control, Need, Orders

SIGNALS = (signal.SIGINT, signal.SIGTERM)

DRAIN_SHARE = 0.8
"""Part of the grace period that is for the requests in flight; the rest is for committing files."""


class RunInterrupted(KeyboardInterrupt):
    """
    The run was stopped from outside; what is committed and journaled stays.

    Attributes:
        signum: The signal that stopped it.
    """

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = signum


class Interrupts:
    """
    Receives SIGINT and SIGTERM while a run goes on. Does nothing outside the main thread, where Python has no signals.

    Args:
        grace_period_s: Seconds from the first signal to the end.
        control: Gives the orders as long as no signal comes.
        now: Monotonic seconds.
    """

    def __init__(
        self, grace_period_s: float, control: Control = NO_CONTROL, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._control = control
        self._drain_s = DRAIN_SHARE * grace_period_s
        self._now = now
        self._num = 0
        self._first: tuple[int, float] | None = None
        self._before: dict[int, Any] = {}
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        """Begin to receive."""
        self.renew()
        return self

    def __exit__(self, *exc: object) -> None:
        """Give the signals back to whoever had them."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @property
    def signum(self) -> int | None:
        """The first signal that came; None while none has."""
        return None if self._first is None else self._first[0]

    @property
    def seconds_left(self) -> float | None:
        """For how long requests in flight are still waited for; None while no signal has come."""
        return None if self._first is None else max(0.0, self._first[1] + self._drain_s - self._now())

    def renew(self) -> None:
        """Take the signals back from a library, such as Ray, that has set handlers of its own in the meantime."""
        if not self._is_main:
            return
        for signum in SIGNALS:
            current = signal.getsignal(signum)
            if current != self._receive and current is not None:  # None: set by C code, which cannot be put back
                self._before.setdefault(signum, current)
                signal.signal(signum, self._receive)

    def check(self) -> None:
        """
        Look whether the run must stop at once. Call it at each tick.

        Raises:
            RunInterrupted: A second signal came.
        """
        self.renew()
        if self._first is not None and self._num > 1:
            raise RunInterrupted("stopped at once; run the same command to resume.", self._first[0])

    @property
    def is_draining(self) -> bool:
        """Whether a signal came, or `control` drains the run."""
        return self._first is not None or self._control.is_draining

    def orders_of(self, worker: str, need: Need) -> Orders:
        """Return the orders of `control`; after a signal, to drain."""
        orders = self._control.orders_of(worker, need)
        return orders if self._first is None else replace(orders, is_draining=True, is_overdue=self.seconds_left == 0)

    def forget(self, worker: str) -> None:
        """Pass it on."""
        self._control.forget(worker)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._num += 1
        if self._first is None:
            self._first = (signum, self._now())
        if self._num > 2:  # nobody looks at the orders: the run hangs somewhere
            raise RunInterrupted("stopped at once; run the same command to resume.", signum)
