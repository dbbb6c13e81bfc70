"""
The simulated server on a socket: in a thread of this process, or for a process of its own.

Knows threads, event loops and sockets; what is answered is the service's.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self, TypeVar

from nemo_llm_stage.testing.simulator.config import ServerConfig
from nemo_llm_stage.testing.simulator.faults import Fault
from nemo_llm_stage.testing.simulator.generation import Answerer
from nemo_llm_stage.testing.simulator.life import RecordedRequest
from nemo_llm_stage.testing.simulator.protocol import Connection
from nemo_llm_stage.testing.simulator.service import Service
from nemo_llm_stage.testing.simulator.stats import ServerStats

T = TypeVar("T")
_BACKLOG = 4_096


class SimulatedServer:
    """
    An OpenAI-compatible server in a thread of this process, with an event loop of its own.

    ```python
    with SimulatedServer(max_num_seqs=64, service_time_s=0.05) as server:
        client = AsyncHTTPClient(base_url=server.base_url)
    ```

    Args:
        config: How it behaves; None for the defaults.
        faults: What goes wrong.
        answer: Text for a request's body, instead of the usual answers. Runs on the server's event loop.
        port: 0 takes a free one.
        settings: Fields of ServerConfig, over those of `config`.
    """

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        faults: Sequence[Fault] = (),
        answer: Answerer | None = None,
        port: int = 0,
        **settings: Any,
    ) -> None:
        self.config = replace(config or ServerConfig(), **settings)
        self.port = port
        self._faults = tuple(faults)
        self._answer = answer
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._run, name="simulated-server", daemon=True)
        self._listener: asyncio.Server | None = None
        self._revival: asyncio.Task[None] | None = None
        self._service: Service

    def __enter__(self) -> Self:
        """
        Start it.

        Raises:
            OSError: The port is taken.
        """
        self._thread.start()
        try:
            self._call(self._open())
        except OSError:
            self._stop_loop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop it; open connections are closed."""
        self._call(self._close())
        self._stop_loop()

    @property
    def base_url(self) -> str:
        """What a client takes as base_url."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def stats(self) -> ServerStats:
        """What it saw up to now; also after it was stopped."""
        return self._do(self._service.stats)

    @property
    def requests(self) -> list[RecordedRequest]:
        """The latest generation requests, at most `max_recorded`, in the order they came."""
        return self._do(lambda: list(self._service.recorded))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What goes wrong. Assign to switch; the faults' clock starts anew."""
        return self._faults

    @faults.setter
    def faults(self, faults: Sequence[Fault]) -> None:
        self._faults = tuple(faults)
        self._do(lambda: self._service.set_faults(self._faults))

    def reset(self) -> None:
        """Forget what was seen."""
        self._do(lambda: self._service.reset())

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Be gone for as long as the block runs: connections break off and new ones are refused."""
        self._call(self._go_down())
        try:
            yield
        finally:
            self._call(self._listen())

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _open(self) -> None:
        self._service = Service(self.config, self._faults, answer=self._answer, on_exit=self._exit)
        await self._listen()

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await listen(self._service, "127.0.0.1", self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    async def _go_down(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        while self._service.connections:
            for connection in list(self._service.connections):
                connection.transport.abort()
            await asyncio.sleep(0)

    async def _close(self) -> None:
        if self._revival is not None:
            self._revival.cancel()
        await self._go_down()

    def _exit(self, seconds: float) -> None:
        async def die_and_come_back() -> None:
            await self._go_down()
            await asyncio.sleep(seconds)
            await self._listen()

        if self._revival is None or self._revival.done():
            self._revival = self._loop.create_task(die_and_come_back())

    def _do(self, function: Callable[[], T]) -> T:
        """Return what `function` returns on the server's loop, or here once that has stopped."""
        if not self._thread.is_alive():
            return function()

        async def call() -> T:
            return function()

        return self._call(call())

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def serve(
    config: ServerConfig,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    faults: Sequence[Fault] = (),
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """
    Serve until SIGINT or SIGTERM. The "exit" fault ends the process with exit code 1.

    Args:
        config: How it behaves.
        host: Address to listen on.
        port: 0 takes a free one.
        faults: What goes wrong.
        on_ready: Called with the base URL when connections are taken.

    Raises:
        OSError: The port is taken.
    """
    loop = new_event_loop()
    try:
        loop.run_until_complete(_serve(config, host, port, faults, on_ready))
    finally:
        loop.close()


async def _serve(
    config: ServerConfig, host: str, port: int, faults: Sequence[Fault], on_ready: Callable[[str], None] | None
) -> None:
    service = Service(config, faults, on_exit=_exit_process)
    listener = await listen(service, host, port)
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    if on_ready is not None:
        on_ready(f"http://{host}:{listener.sockets[0].getsockname()[1]}/v1")
    await stop.wait()
    listener.close()
    for connection in list(service.connections):
        connection.transport.abort()


def _exit_process(_: float) -> None:
    import os

    os._exit(1)


async def listen(service: Service, host: str, port: int) -> asyncio.Server:
    """Return a listening socket whose connections go to `service`."""
    keep_alive_s = service.config.keep_alive_s
    return await asyncio.get_running_loop().create_server(
        lambda: Connection(service, keep_alive_s), host, port, backlog=_BACKLOG, reuse_address=True
    )


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new uvloop event loop, or asyncio's own where there is no uvloop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
