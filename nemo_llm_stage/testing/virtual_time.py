"""
Virtual time: an event loop whose clock jumps to the next timer whenever there is nothing to do.

Client and simulated servers on one such loop, over real sockets, need only the CPU of their work: minutes take seconds,
and a busy machine gives the same results. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from nemo_llm_stage.client.clock import SystemClock
from nemo_llm_stage.testing.simulator.config import ServerConfig
from nemo_llm_stage.testing.simulator.faults import Fault
from nemo_llm_stage.testing.simulator.server import listen
from nemo_llm_stage.testing.simulator.service import Service

T = TypeVar("T")

_START_S = 1000.0
_BEYOND_S = 1e-9
"""Timers fire this much late: one that fired early would be set again, for zero seconds."""

_LONG_S, _GRACE_S = 0.05, 0.002
"""Real seconds that the kernel gets before a long virtual wait: on a busy machine a connection takes a moment."""


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for sockets, never for timers."""

    now_s = _START_S

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the sockets that are ready; if none is, add `timeout` to the virtual time."""
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:  # for a thread
            return super().select(None)
        if timeout >= _LONG_S and (ready := super().select(_GRACE_S)):
            return ready
        self.now_s += timeout + _BEYOND_S
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run_in_virtual_time(main: Callable[[], Coroutine[Any, Any, T]], seed: int = 0) -> T:
    """
    Return what ``main()`` returns. Until then `time.monotonic` and the clients' clock return virtual seconds.

    Args:
        main: What to run; everything in it that takes time must be on its event loop.
        seed: Of `random`, e.g. for the pauses before retries.
    """
    loop = _VirtualLoop()
    real, clients = time.monotonic, SystemClock.__dict__["monotonic"]
    random.seed(seed)
    time.monotonic = loop.time
    SystemClock.monotonic = staticmethod(loop.time)  # it holds the real one
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # ends what is left on the loop, and closes it
            return runner.run(main())
    finally:
        time.monotonic, SystemClock.monotonic = real, clients


@asynccontextmanager
async def simulated_service(
    config: ServerConfig | None = None, faults: Sequence[Fault] = (), port: int = 0
) -> AsyncIterator[tuple[int, Service]]:
    """Yield the port, a free one for 0, and the service of a simulated server on the running event loop."""
    service = Service(config or ServerConfig(), faults, on_exit=lambda _: None)  # it cannot `exit`
    listener = await listen(service, "127.0.0.1", port)
    try:
        yield listener.sockets[0].getsockname()[1], service
    finally:
        listener.close()
        for connection in list(service.connections):
            connection.transport.abort()
