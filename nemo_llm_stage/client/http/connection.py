"""
One HTTP/1.1 connection: one request at a time, and its response.

Knows nothing of pools, proxies or LLMs; `reader` reads the responses.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from enum import Enum, StrEnum
from typing import cast

from nemo_llm_stage.client.http.bounds import MAX_UNREAD_SLICES
from nemo_llm_stage.client.http.deadlines import Deadlines
from nemo_llm_stage.client.http.reader import ResponseReader
from nemo_llm_stage.client.http.transport import HTTPResponse, OnEventBytes
from nemo_llm_stage.client.http.turns import Turns
from nemo_llm_stage.errors import ConnectionDroppedError

NUM_REMEMBERED = 8
"""Responses whose fingerprints a connection remembers: a second copy of a response comes soon after the first."""

_NOT_SENT_TWICE = frozenset(range(400, 600)) - {429, 503}
"""Statuses after which a connection is not used again: a second copy of such a response would fail another row. A
server with too much to do (429, 503) says so to any row, and more connections would not help it."""


class ConnectionState(Enum):
    """What a connection is doing."""

    CONNECTING = "connecting"
    IDLE = "idle"
    BUSY = "busy"
    CLOSED = "closed"


class DropCause(StrEnum):
    """Why a connection was closed."""

    CLOSED_BY_SERVER = "closed by the server"
    NOT_KEPT_ALIVE = "not kept alive by the server"
    IDLE_TOO_LONG = "idle too long"
    REQUEST_FAILED = "request failed"
    REQUEST_CANCELLED = "request cancelled"
    ERROR_RESPONSE = "error response"
    UNASKED_BYTES = "bytes without a request"
    REPEATED_RESPONSE = "response sent twice"
    IN_DOUBT = "responses in doubt"
    SINGLE_USE = "single use"
    CLIENT_CLOSED = "client closed"


class Connection(asyncio.Protocol):
    """
    An open connection, for one exchange after another.

    Args:
        server: ``http(s)://host:port``; connections to one server can stand in for each other.
        turns: Shares the event loop with the other connections.
        deadlines: Watches the exchanges of all of them.
        on_lost: Called once when the connection is closed.

    Attributes:
        state: What it is doing.
        idle_since_s: Loop time of the last bytes of the last exchange.
        num_exchanges: Whole responses so far.
        fingerprint: Of the last response's content.
        remembered: Fingerprints of the responses before it.
        is_in_doubt: A response came that may be a copy of one before it, at a server that says the same to everything.
        drop_cause: Why it was closed; None while it is open, or where the server closed it.
    """

    def __init__(self, server: str, turns: Turns, deadlines: Deadlines, on_lost: Callable[[Connection], None]) -> None:
        self.server = server
        self.state = ConnectionState.CONNECTING
        self.idle_since_s = 0.0
        self.num_exchanges = 0
        self.fingerprint = 0
        self.remembered: deque[int] = deque(maxlen=NUM_REMEMBERED)
        self.is_in_doubt = False
        self.drop_cause: DropCause | None = None
        self._turns = turns
        self._deadlines = deadlines
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._reader: ResponseReader | None = None
        self._active: ResponseReader | None = None
        self._is_working = self._is_paused = False
        self._end: tuple[Exception | None] | None = None

    def __repr__(self) -> str:
        cause = f", {self.drop_cause.value}" if self.drop_cause is not None else ""
        return f"<Connection {self.server}: {self.state.value}, {self.num_exchanges} exchanges{cause}>"

    async def exchange(
        self,
        request: bytes,
        url: str,
        *,
        now_s: float,
        deadline_s: float,
        read_timeout_s: float | None,
        max_bytes: int,
        on_event_bytes: OnEventBytes | None,
    ) -> HTTPResponse:
        """
        Send the bytes of one request and return the response; the connection stays open if the server lets it.

        Args:
            request: Head and body.
            url: For messages.
            now_s: Loop time.
            deadline_s: Loop time by which the whole response must be there.
            read_timeout_s: Longest silence; None for none.
            max_bytes: Longest response, as sent and as decompressed.
            on_event_bytes: See `Transport.send`.

        Raises:
            TransientError: There was no whole response; the connection is closed then, as it is on cancellation.
        """
        if self._transport is None:
            raise ConnectionDroppedError(f"The connection to {url} ended before the request.")
        if self._reader is None:
            self._reader = ResponseReader(self._loop)
        reader = self._active = self._reader
        coming = reader.begin(url, now_s, deadline_s, read_timeout_s, max_bytes, on_event_bytes)
        self._deadlines.add(reader, reader.due_s())
        self.state = ConnectionState.BUSY
        self._transport.write(request)
        try:
            response = await coming
        except asyncio.CancelledError:
            self.close(DropCause.REQUEST_CANCELLED)
            raise
        except BaseException:
            self.close(DropCause.REQUEST_FAILED)
            raise
        finally:
            self.idle_since_s = reader.heard_at_s
            reader.end_response()
            self._deadlines.discard(reader)
            self._active = None
            if self._transport is None:
                reader.close()
        self.num_exchanges += 1
        self.fingerprint = reader.fingerprint
        if not reader.is_reusable:
            self.close(DropCause.UNASKED_BYTES if reader.has_overrun else DropCause.NOT_KEPT_ALIVE)
        elif response.status in _NOT_SENT_TWICE:
            self.close(DropCause.ERROR_RESPONSE)
        elif self._transport is not None:
            self.state = ConnectionState.IDLE
        return response

    def close(self, cause: DropCause) -> None:
        """Close at once. The first cause counts."""
        if self.drop_cause is None and self.state is not ConnectionState.CLOSED:
            self.drop_cause = cause
        if self._transport is not None:
            self._transport.abort()

    def check_idle(self) -> bool:
        """
        Return whether the connection can carry the next request; close it if not.

        The event loop may not have looked at the socket since the last response. What lies on it is either the
        server's end or bytes that no request has asked for, which would be taken for the next response.
        """
        if self._transport is None or self._transport.is_closing():
            return False
        if not self._poll.poll(0):
            return True
        self.close(self._cause_of_bytes(self._peek()))
        return False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)
        self._file_number: int = transport.get_extra_info("socket").fileno()
        self._poll = select.poll()
        self._poll.register(self._file_number, select.POLLIN)
        self.state = ConnectionState.IDLE

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        reader = self._active
        if reader is None:
            self.close(self._cause_of_bytes(data))
            return
        reader.take(data)
        if reader.has_work:
            self._work_later(reader)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._transport = None
        self.state = ConnectionState.CLOSED
        self._on_lost(self)
        if self._is_working:
            self._end = (exc,)
        elif self._active is not None:
            self._active.end(exc)
        elif self._reader is not None:
            self._reader.close()

    def _work_later(self, reader: ResponseReader) -> None:
        if not self._is_working:
            self._is_working = True
            self._turns.add(self._work)
        if len(reader.unread) > MAX_UNREAD_SLICES and self._transport is not None and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _work(self) -> bool:
        """Read a little of what has come in; return whether there is more."""
        if self._active is not None and self._active.step():
            return True
        self._is_working = False
        if self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self._is_paused = False
        if self._end is not None and self._active is not None:
            self._active.end(self._end[0])
        return False

    def _peek(self) -> bytes:
        """Return the first bytes that wait to be read; none where the connection has ended."""
        try:
            with socket.socket(fileno=os.dup(self._file_number)) as peeked:
                peeked.setblocking(False)
                return peeked.recv(16, socket.MSG_PEEK)
        except OSError:
            return b""

    def _cause_of_bytes(self, data: bytes) -> DropCause:
        """
        Return the cause to close an idle connection on which `data` came.

        Some proxies say 408 on an idle connection before they close it. Bytes of TLS may be its own.
        """
        is_farewell = not data or data[9:12] == b"408"
        is_tls_record = self.server.startswith("https:") and data[:1] in {b"\x15", b"\x16", b"\x17"}
        return DropCause.CLOSED_BY_SERVER if is_farewell or is_tls_record else DropCause.UNASKED_BYTES
