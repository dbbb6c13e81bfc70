"""Hosts with several addresses, some of them dead."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import uvloop

from nemo_llm_stage.client.http import dial as dialling
from nemo_llm_stage.client.http.dial import dial

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


def connect(addresses: list[Address], loop_factory: object) -> Address | str:
    """Whom a host with these addresses is reached at, or the words of the failure."""

    class Loop(loop_factory):  # type: ignore[misc, valid-type]
        async def getaddrinfo(self, host: object, *args: object, **kwargs: object) -> list[object]:
            if host != "several.example":  # uvloop looks up addresses too
                return await super().getaddrinfo(host, *args, **kwargs)  # type: ignore[no-any-return]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    async def scenario() -> Address | str:
        try:
            async with asyncio.timeout(5):
                connected = await dial("several.example", 80)
        except OSError as error:
            return str(error) or type(error).__name__
        with connected:
            return connected.getpeername()  # type: ignore[no-any-return]

    with asyncio.Runner(loop_factory=Loop) as runner:
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
