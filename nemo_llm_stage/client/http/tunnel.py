"""
A tunnel through an HTTP proxy: CONNECT, and what proxies answer to it.

Knows nothing of TLS, which is spoken through the tunnel.
"""

from __future__ import annotations

import asyncio
import re
import socket

from nemo_llm_stage.client.http.dial import dial
from nemo_llm_stage.client.http.route import Route

MAX_TUNNEL_HEAD_BYTES = 16 * 1024
"""Longest response of a proxy to CONNECT."""

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9][0-9])(?: |\r?\n)")


async def open_tunnel(route: Route) -> socket.socket:
    """
    Return a socket on which the proxy hands bytes through to the route's host.

    Raises:
        OSError: The proxy cannot be reached, refuses, or does not answer in HTTP; the message names it.
    """
    assert route.proxy is not None
    loop, name = asyncio.get_running_loop(), route.proxy.name
    try:
        tunnel = await dial(route.proxy.host, route.proxy.port)
    except OSError as error:
        raise ConnectionError(f"the proxy {name} cannot be reached: {error.strerror or error}") from error
    try:
        await loop.sock_sendall(tunnel, route.tunnel_head())
        status = 0
        while status < 200:
            status = _status_of(await _read_head(tunnel, name), name)
        if status >= 300:
            raise ConnectionError(f"the proxy {name} refused the tunnel with status {status}")
    except BaseException:
        tunnel.close()
        raise
    return tunnel


async def _read_head(tunnel: socket.socket, name: str) -> bytes:
    loop, head = asyncio.get_running_loop(), bytearray()
    while not head.endswith((b"\r\n\r\n", b"\n\n")):
        piece = await loop.sock_recv(tunnel, 1)  # no byte further: what follows belongs to TLS
        head += piece
        if not piece:
            raise ConnectionError(f"the proxy {name} broke off before it had answered")
        if len(head) > MAX_TUNNEL_HEAD_BYTES:
            raise ConnectionError(f"the proxy {name} answered with more than {MAX_TUNNEL_HEAD_BYTES} bytes")
    return bytes(head)


def _status_of(head: bytes, name: str) -> int:
    found = _STATUS.match(head)
    if found is None:
        raise ConnectionError(f"the proxy {name} does not answer in HTTP")
    return int(found[1])
