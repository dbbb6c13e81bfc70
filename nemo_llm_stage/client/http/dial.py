"""
A connected socket to a host that may have several addresses, some of them dead.

"Happy eyeballs": addresses of both families in turn, a new attempt each quarter of a second, the first to connect wins.
uvloop leaves this out of ``create_connection``. Source: RFC 8305. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from itertools import chain, zip_longest
from typing import Any

ATTEMPT_DELAY_S = 0.25
"""Time before the next address is tried beside the one before. Source: RFC 8305 §5."""

MAX_ADDRESSES = 16
"""Most addresses tried."""

_Address = tuple[socket.AddressFamily, socket.SocketKind, int, Any]
"""Family, kind, protocol, and where, as the socket module takes it."""


async def dial(host: str, port: int) -> socket.socket:
    """
    Return a non-blocking socket connected to `host`; its addresses are looked up anew each time.

    Cancellation closes whatever is being connected.

    Raises:
        OSError: The host is unknown, or no address takes the connection; the words of each are in the message.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = interleaved([(family, kind, protocol, where) for family, kind, protocol, _, where in found])
    if len(addresses) == 1:
        return await _connect(addresses[0])
    return await _race(addresses)


async def _race(addresses: list[_Address]) -> socket.socket:
    waiting, attempts = deque(addresses), set[asyncio.Task[socket.socket]]()
    errors: list[OSError] = []
    try:
        while waiting or attempts:
            if waiting:
                attempts.add(asyncio.create_task(_connect(waiting.popleft())))
            timeout_s = ATTEMPT_DELAY_S if waiting else None
            done, attempts = await asyncio.wait(attempts, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            errors += [task.exception() for task in done if isinstance(task.exception(), OSError)]  # type: ignore[misc]
            connected = [task.result() for task in done if task.exception() is None]
            if connected:
                for late in connected[1:]:
                    late.close()
                return connected[0]
    finally:
        for task in attempts:
            task.add_done_callback(_close_late)
            task.cancel()
    raise _joined(errors)


async def _connect(address: _Address) -> socket.socket:
    family, kind, protocol, where = address
    connecting = socket.socket(family, kind, protocol)
    try:
        connecting.setblocking(False)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connecting, where)
    except BaseException:
        connecting.close()
        raise
    return connecting


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def interleaved(addresses: list[_Address]) -> list[_Address]:
    """Return at most `MAX_ADDRESSES`, the first one first, then the families in turn."""
    if not addresses:
        raise OSError("the host has no address")
    first = [address for address in addresses if address[0] == addresses[0][0]]
    others = [address for address in addresses if address[0] != addresses[0][0]]
    pairs = chain.from_iterable(zip_longest(first, others))
    return [address for address in pairs if address is not None][:MAX_ADDRESSES]


def _joined(errors: list[OSError]) -> OSError:
    """One error for all addresses: the first where all failed alike."""
    if len({error.errno for error in errors}) == 1:
        return errors[0]
    return OSError("; ".join(dict.fromkeys(error.strerror or str(error) for error in errors)))
