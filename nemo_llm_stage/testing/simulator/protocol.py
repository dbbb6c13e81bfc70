"""
HTTP/1.1 on a socket: requests in, answers out, one at a time and in order.

Does keep-alive, pipelined requests, bodies by Content-Length and chunked ones. Knows nothing of models or routes; what
comes in goes to the handler as an `Exchange`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_BAD_REQUEST = 400


class ConnectionObserver(Protocol):
    """Who handles the exchanges and counts the connections."""

    def handle(self, exchange: Exchange) -> None:
        """Answer `exchange` now or later."""

    def connection_made(self, connection: Connection) -> None:
        """Note a new connection."""

    def connection_lost(self, connection: Connection) -> None:
        """Note that a connection ended."""


class Exchange:
    """
    One request and the way to answer it.

    Attributes:
        method: Upper case.
        path: Without the query.
        head: Request line and headers as they came.
        body: The whole body.
        rate_headers: Header lines of a whole answer, each with its CRLF.
        on_end: Called once: with True when the answer is out, with False if the client left before.
    """

    __slots__ = ("body", "connection", "head", "method", "on_end", "path", "rate_headers")

    def __init__(self, connection: Connection, method: str, path: str, head: bytes, body: bytes) -> None:
        self.connection = connection
        self.method = method
        self.path = path
        self.head = head
        self.body = body
        self.rate_headers = ""
        self.on_end: Callable[[bool], None] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Header names in lower case, and their values."""
        return parse_headers(self.head)

    def reply(self, status: int, body: bytes, *, content_type: str = "application/json", headers: str = "") -> None:
        """Send a whole answer. `headers` are further lines, each with its CRLF."""
        self.send(head_of(status, content_type, len(body), headers) + body)
        self.complete()

    def start_chunked(self, content_type: str) -> None:
        """Begin an answer that comes in pieces."""
        self.send(head_of(HTTPStatus.OK, content_type, None, ""))

    def send_chunks(self, *pieces: bytes) -> None:
        """Send pieces of an answer begun with `start_chunked`."""
        self.send(b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]))

    def end_chunked(self) -> None:
        """End an answer begun with `start_chunked`."""
        self.send(b"0\r\n\r\n")
        self.complete()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.connection.transport.write(data)

    def complete(self) -> None:
        """Say that the answer is out; the connection goes on with its next request."""
        self.end(is_answered=True)
        self.connection.exchange_done()

    def hang_up(self) -> None:
        """Close the connection after what was sent, complete or not."""
        self.end(is_answered=True)
        self.connection.transport.close()

    def reset(self) -> None:
        """Reset the connection at once."""
        self.end(is_answered=True)
        self.connection.transport.abort()

    def end(self, *, is_answered: bool) -> None:
        """Call `on_end`: this exchange is over."""
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(is_answered)


class Connection(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, observer: ConnectionObserver, keep_alive_s: float | None) -> None:
        self._observer = observer
        self._keep_alive_s = keep_alive_s
        self._received = b""
        self._exchange: Exchange | None = None
        self._is_last = False
        self._is_parsing = False
        self._idle_since_s = time.monotonic()
        self._idle_timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to listen."""
        self.transport = transport  # type: ignore[assignment]
        self._observer.connection_made(self)
        if self._keep_alive_s is not None:
            self._check_idle()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._received = self._received + data if self._received else data
        self._handle_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the handler that nobody waits for its answer any more."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.end(is_answered=False)
        self._observer.connection_lost(self)

    def exchange_done(self) -> None:
        """Go on with the next request, or close if the client asked for that."""
        self._exchange = None
        self._idle_since_s = time.monotonic()
        if self._is_last:
            self.transport.close()
        elif self._received and not self._is_parsing:
            self._handle_received()

    def _handle_received(self) -> None:
        self._is_parsing = True  # answers given at once do not recurse
        try:
            while self._exchange is None and self._received and not self.transport.is_closing():
                try:
                    self._exchange = self._next_exchange()
                except ValueError:
                    self.transport.write(head_of(_BAD_REQUEST, "text/plain", 0, "connection: close\r\n"))
                    self.transport.close()
                    return
                if self._exchange is None:
                    return
                self._observer.handle(self._exchange)
        finally:
            self._is_parsing = False

    def _next_exchange(self) -> Exchange | None:
        received = self._received
        head_end = received.find(b"\r\n\r\n")
        if head_end < 0:
            return None
        head = received[:head_end]
        lower = head.lower()
        body_start = head_end + 4
        if b"\r\ntransfer-encoding:" in lower:
            found = _dechunk(received, body_start)
            if found is None:
                return None
            body, body_end = found
        else:
            body_end = body_start + _content_length(lower)
            if len(received) < body_end:
                return None
            body = received[body_start:body_end]
        self._received = received[body_end:]
        method, target, version = (
            head[: head.find(b"\r\n") if b"\r\n" in head else len(head)].decode("latin-1").split(" ")
        )
        self._is_last = b"\r\nconnection: close" in lower or version == "HTTP/1.0"
        return Exchange(self, method, target.partition("?")[0], head, body)

    def _check_idle(self) -> None:
        assert self._keep_alive_s is not None
        left_s = self._keep_alive_s
        if self._exchange is None:
            left_s += self._idle_since_s - time.monotonic()
        if left_s <= 0:
            self.transport.close()
        else:
            self._idle_timer = asyncio.get_running_loop().call_later(left_s, self._check_idle)


def parse_headers(head: bytes) -> dict[str, str]:
    """Return the headers of a request head: names in lower case, and their values."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def head_of(status: int, content_type: str, length: int | None, headers: str) -> bytes:
    """Return the head of an answer; a `length` of None means chunked."""
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    reason = _REASONS.get(status, b"").decode()
    return f"HTTP/1.1 {status} {reason}\r\ncontent-type: {content_type}\r\n{framing}\r\n{headers}\r\n".encode("latin-1")


def _content_length(lower_head: bytes) -> int:
    start = lower_head.find(b"\r\ncontent-length:")
    if start < 0:
        return 0
    start += len(b"\r\ncontent-length:")
    end = lower_head.find(b"\r\n", start)
    return int(lower_head[start:] if end < 0 else lower_head[start:end])


def _dechunk(received: bytes, start: int) -> tuple[bytes, int] | None:
    """Return a chunked body and where it ends, or None while it is not complete. Trailers are not supported."""
    pieces: list[bytes] = []
    while True:
        line_end = received.find(b"\r\n", start)
        if line_end < 0:
            return None
        size = int(received[start:line_end].partition(b";")[0], 16)
        start, end = line_end + 2, line_end + 2 + size
        if len(received) < end + 2:
            return None
        if size == 0:
            return b"".join(pieces), end + 2
        pieces.append(received[start:end])
        start = end + 2
