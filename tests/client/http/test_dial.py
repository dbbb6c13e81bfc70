"""Hosts with several addresses, some of them dead."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import uvloop

from nemo_llm_stage.client.http import dial as dialling
from nemo_llm_stage.client.http.dial import dial
from nemo_llm_stage.client.http.http1 import HTTP1Transport
from nemo_llm_stage.client.http.transport import TransportConfig
from nemo_llm_stage.errors import ConnectionFailedError

Address = tuple[str, int]


@contextmanager
def black_hole() -> Iterator[Address]:
    """An address that takes no further connection and refuses none: its queue is full."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.2", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()
        for filler in fillers:
            filler.close()


@contextmanager
def refusing() -> Iterator[Address]:
    """An address that nobody listens at."""
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()


def with_addresses(loop_factory: Any, addresses: list[Address]) -> Any:
    """A kind of loop that finds these addresses for several.example."""

    class Loop(loop_factory):  # type: ignore[misc]
        async def getaddrinfo(self, host: object, *args: object, **kwargs: object) -> list[object]:
            if host != "several.example":  # uvloop looks up addresses too
                return await super().getaddrinfo(host, *args, **kwargs)  # type: ignore[no-any-return]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    return Loop


def connect(addresses: list[Address], loop_factory: object) -> Address | str:
    """Whom a host with these addresses is reached at, or the words of the failure."""

    async def scenario() -> Address | str:
        try:
            async with asyncio.timeout(5):
                connected = await dial("several.example", 80)
        except OSError as error:
            return str(error) or type(error).__name__
        with connected:
            return connected.getpeername()  # type: ignore[no-any-return]

    with asyncio.Runner(loop_factory=with_addresses(loop_factory, addresses)) as runner:
        return runner.run(scenario())


LOOPS = pytest.mark.parametrize("loop_factory", [uvloop.Loop, asyncio.SelectorEventLoop], ids=["uvloop", "asyncio"])


@LOOPS
@pytest.mark.parametrize("dead", [black_hole, refusing])
def test_a_dead_first_address_is_passed_over(dead: object, loop_factory: object) -> None:
    """Whether it refuses or swallows what is sent."""
    with dead() as first, closing(socket.create_server(("127.0.0.1", 0))) as server:  # type: ignore[operator]
        alive = server.getsockname()
        assert connect([first, alive], loop_factory) == alive


@LOOPS
@pytest.mark.parametrize("dead", [black_hole, refusing])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxys_dead_first_address_is_passed_over(scheme: str, dead: object, loop_factory: object) -> None:
    """With a tunnel and without one."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async def scenario(addresses: list[Address]) -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            addresses.append(server.sockets[0].getsockname())
            transport = HTTP1Transport(TransportConfig({}, 5.0, 5.0, None, 1000, proxy="http://several.example:80"))
            with contextlib.suppress(ConnectionFailedError):
                await transport.send(f"{scheme}://far.example/x", b"")
            await transport.aclose()

    with dead() as first:  # type: ignore[operator]
        addresses = [first]
        with asyncio.Runner(loop_factory=with_addresses(loop_factory, addresses)) as runner:
            runner.run(scenario(addresses))
    assert [head.partition(b" ")[0] for head in heads] == [b"CONNECT" if scheme == "https" else b"POST"]


@LOOPS
def test_no_address_alive_says_why(loop_factory: object) -> None:
    """By the error of each."""
    with refusing() as first, refusing() as second:
        assert "Errno 111" in connect([first, second], loop_factory)


def test_the_families_take_turns() -> None:
    """As the system orders them within a family; a long list is cut."""
    six, four = socket.AF_INET6, socket.AF_INET
    found = [(six, 1), (six, 2), (six, 3), (four, 1), (four, 2)]
    addresses = [(family, socket.SOCK_STREAM, 6, where) for family, where in found]
    ordered = [(family, where) for family, _, _, where in dialling.interleaved(addresses)]
    assert ordered == [(six, 1), (four, 1), (six, 2), (four, 2), (six, 3)]
