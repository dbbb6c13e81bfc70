"""
HTTP/1.1 on the event loop itself: kept-alive connections, TLS, proxies.

Why not a library's client: an exchange here costs two thirds of the CPU of the fastest one at hand (pyreqwest 0.15, in
Rust), and that one leaves a cancelled request running on the server. Source: benchmarks/bench_client.py, November
2026. Knows nothing of LLMs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

from nemo_llm_stage.client.http.connector import Connector
from nemo_llm_stage.client.http.loop_end import LoopEnd
from nemo_llm_stage.client.http.pool import ConnectionPool
from nemo_llm_stage.client.http.route import Route, find_route
from nemo_llm_stage.client.http.transport import (
    HTTPResponse,
    OnEventBytes,
    Transport,
    TransportConfig,
    TransportStatistics,
)
from nemo_llm_stage.errors import RepeatedResponseError

_OK = HTTPStatus.OK.value


class HTTP1Transport(Transport):
    """Kept-alive connections of one event loop. TLS is verified, redirects are not followed."""

    def __init__(self, config: TransportConfig) -> None:
        self._config = config
        self._loop: asyncio.AbstractEventLoop | None = None
        self._routes: dict[str, Route] = {}
        self._heads: dict[tuple[str, str], bytes] = {}
        self._pool = ConnectionPool()
        self._connector = Connector(self._pool, config)
        self._end = LoopEnd(self._pool.aclose)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.statistics()}>"

    async def send(
        self,
        url: str,
        body: bytes | None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        on_event_bytes: OnEventBytes | None = None,
    ) -> HTTPResponse:
        """See `Transport.send`."""
        config = self._config
        total_s = config.timeout_s if timeout_s is None else timeout_s
        if self._loop is None:
            self._loop = asyncio.get_running_loop()  # asked once: it costs a system call
        now_s = self._loop.time()
        route = self._routes.get(url)
        if route is None:
            route = self._routes[url] = find_route(url, config.proxy)
        request = self._request(url, route, body, headers)
        connection = self._pool.take(route.server, now_s)
        if connection is None:
            await self._end.watch()
            connection = await self._connector.connect(route, min(config.connect_timeout_s, total_s))
        response = await connection.exchange(
            request,
            route.shown_url,
            now_s=now_s,
            deadline_s=now_s + total_s,
            read_timeout_s=config.read_timeout_s,
            max_bytes=config.max_response_bytes,
            on_event_bytes=on_event_bytes,
        )
        if self._pool.is_repeated(connection, body if response.status == _OK else None):
            raise RepeatedResponseError(f"{route.shown_url} sent a response twice; the connection was closed.")
        self._pool.put(connection)
        return response

    def statistics(self) -> TransportStatistics:
        """Return how the connections stand. Can be called from any thread."""
        return self._pool.statistics()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._end.aclose()

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
