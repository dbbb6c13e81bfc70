"""
HTTP/1.1 on the event loop itself: a pool of kept-alive connections, TLS, proxies.

Why not a library's client: an exchange here costs two thirds of the CPU of the fastest one at hand (pyreqwest 0.15, in
Rust), and that one leaves a cancelled request running on the server. Source: benchmarks/bench_client.py, November
2026. Knows nothing of LLMs.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus

from nemo_llm_stage.client.http.connection import Connection
from nemo_llm_stage.client.http.loop_end import LoopEnd
from nemo_llm_stage.client.http.route import Route, find_route
from nemo_llm_stage.client.http.tls import tls_context
from nemo_llm_stage.client.http.transport import Answer, Transport, TransportConfig
from nemo_llm_stage.errors import ConnectionFailedError

POOL_IDLE_S = 4.0
"""Connections idle for longer are not used again: servers close them, uvicorn after 5 s (its default)."""

MAX_TUNNEL_HEAD_BYTES = 16 * 1024
"""Longest answer of a proxy that is asked for a tunnel."""


class HTTP1Transport(Transport):
    """Kept-alive connections of one event loop. TLS is verified, redirects are not followed."""

    def __init__(self, config: TransportConfig) -> None:
        self._config = config
        self._routes: dict[str, Route] = {}
        self._heads: dict[tuple[str, str], bytes] = {}
        self._idle: dict[tuple[str, int, bool], deque[Connection]] = {}
        self._connections: set[Connection] = set()
        self._end = LoopEnd(partial(_abort_all, self._connections))
        self._tls: ssl.SSLContext | None = None

    async def send(
        self,
        url: str,
        body: bytes | None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        on_event_bytes: Callable[[bytes], None] | None = None,
    ) -> Answer:
        """See `Transport.send`."""
        config = self._config
        total_s = config.timeout_s if timeout_s is None else timeout_s
        deadline_s = asyncio.get_running_loop().time() + total_s
        route = self._routes.get(url)
        if route is None:
            route = self._routes[url] = find_route(url, config.proxy)
        request = self._request(url, route, body, headers)
        connection = self._take_idle(route)
        if connection is None:
            connection = await self._connect(route, url, min(config.connect_timeout_s, total_s))
        answer = await connection.ask(
            request,
            url,
            deadline_s=deadline_s,
            read_timeout_s=config.read_timeout_s,
            max_bytes=config.max_response_bytes,
            on_event_bytes=on_event_bytes,
        )
        if connection.is_open:
            self._idle.setdefault(route.origin, deque()).append(connection)
        return answer

    async def aclose(self) -> None:
        """Close every connection."""
        await self._end.aclose()
        self._idle.clear()

    def _request(self, url: str, route: Route, body: bytes | None, headers: Mapping[str, str] | None) -> bytes:
        method = "GET" if body is None else "POST"
        if headers:
            own = {name.lower(): value for name, value in headers.items()}
            head = route.head(method, {**self._config.headers, **own})
        else:
            head = self._heads.get((method, url)) or self._heads.setdefault(
                (method, url), route.head(method, self._config.headers)
            )
        if body is None:
            return head + b"\r\n"
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)

    def _take_idle(self, route: Route) -> Connection | None:
        """The connection used last: the others grow old and are closed."""
        idle = self._idle.get(route.origin)
        if not idle:
            return None
        oldest_s = asyncio.get_running_loop().time() - POOL_IDLE_S
        while idle and idle[0].idle_since_s < oldest_s:
            idle.popleft().abort()
        while idle:
            connection = idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self, route: Route, url: str, timeout_s: float) -> Connection:
        await self._end.watch()
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._open(route)
        except TimeoutError:
            raise ConnectionFailedError(f"No connection to {url} within {timeout_s:g} s.") from None
        except OSError as error:
            raise ConnectionFailedError(f"No connection to {url}: {_reason(error)}.") from error
        self._connections.add(connection)
        return connection

    async def _open(self, route: Route) -> Connection:
        loop = asyncio.get_running_loop()
        on_lost = self._connections.discard  # not a method of ours: connections must not keep the transport alive
        tls = self._tls_context() if route.is_tls else None
        name = route.host if route.is_tls else None
        if route.proxy is None:
            _, connection = await loop.create_connection(
                lambda: Connection(on_lost), route.host, route.port, ssl=tls, server_hostname=name
            )
            return connection
        if tls is None:
            _, connection = await loop.create_connection(
                lambda: Connection(on_lost), route.proxy.host, route.proxy.port
            )
            return connection
        tunnel = await _open_tunnel(route)
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(on_lost), sock=tunnel, ssl=tls, server_hostname=name
            )
        except BaseException:
            tunnel.close()
            raise
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = tls_context(self._config.ca_file, self._config.cert_file, self._config.key_file)
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


async def _abort_all(connections: set[Connection]) -> None:
    for connection in list(connections):
        connection.abort()
    await asyncio.sleep(0)  # the loop closes the sockets in its next turn


async def _open_tunnel(route: Route) -> socket.socket:
    """
    Return a socket on which the proxy hands bytes through to the route's host.

    Raises:
        OSError: The proxy cannot be reached or refuses.
    """
    assert route.proxy is not None
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(route.proxy.host, route.proxy.port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = addresses[0]
    tunnel = socket.socket(family, kind, protocol)
    try:
        tunnel.setblocking(False)
        await loop.sock_connect(tunnel, address)
        await loop.sock_sendall(tunnel, route.tunnel_head())
        head = b""
        while b"\r\n\r\n" not in head:
            piece = await loop.sock_recv(tunnel, 1)  # no byte further: what follows belongs to TLS
            head += piece
            if not piece or len(head) > MAX_TUNNEL_HEAD_BYTES:
                raise ConnectionError("the proxy broke off")
        status = head.split(b" ", 2)[1].decode("latin-1")
        if status != str(HTTPStatus.OK.value):
            raise ConnectionError(f"the proxy refused the tunnel with status {status}")
    except BaseException:
        tunnel.close()
        raise
    return tunnel


def _reason(error: OSError) -> str:
    """The operating system's words for `error`, without Python's numbers around them."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}); ca_file names further ones to trust"
    if isinstance(error, socket.gaierror) and error.strerror:
        return error.strerror
    if error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
