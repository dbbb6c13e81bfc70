"""
One HTTP/1.1 connection: one request at a time, and its answer.

Bytes are parsed by httptools (llhttp, the parser of Node.js). Knows nothing of pools, proxies or LLMs.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import cast

import httptools

from nemo_llm_stage.client.http.transport import Answer
from nemo_llm_stage.errors import ConnectionDroppedError, InvalidResponseError, RequestError, RequestTimeoutError

_OK = 200

MAX_ERROR_BYTES = 64 * 1024
"""Read of an answer that is an error; the rest is left unread and the connection closed."""

_GZIP_OR_ZLIB = 47
"""zlib's ``wbits`` for "find out which of the two it is"."""


class Connection(asyncio.Protocol):
    """
    An open connection, for one exchange after another.

    Attributes:
        idle_since_s: Loop time at which the last exchange ended.
    """

    def __init__(self, on_lost: Callable[[Connection], None]) -> None:
        self.idle_since_s = 0.0
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._exchange: _Exchange | None = None

    @property
    def is_open(self) -> bool:
        """Whether the next exchange can be tried on it."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(
        self,
        request: bytes,
        url: str,
        *,
        deadline_s: float,
        read_timeout_s: float | None,
        max_bytes: int,
        on_event_bytes: Callable[[bytes], None] | None,
    ) -> Answer:
        """
        Send the bytes of one request and return its answer; the connection stays open if the server lets it.

        Args:
            request: Head and body.
            url: For messages.
            deadline_s: Loop time by which the whole answer must be there.
            read_timeout_s: Longest silence; None for none.
            max_bytes: Longest answer, as sent and as decompressed.
            on_event_bytes: Takes the pieces of an event stream.

        Raises:
            TransientError: There was no whole answer; the connection is closed then, as it is on cancellation.
        """
        if self._transport is None:
            raise ConnectionDroppedError(f"The connection to {url} ended before the request.")
        loop = asyncio.get_running_loop()
        exchange = self._exchange = _Exchange(loop, url, deadline_s, read_timeout_s, max_bytes, on_event_bytes)
        self._transport.write(request)
        try:
            answer = await exchange.answered
        except BaseException:
            self.abort()
            raise
        finally:
            exchange.close()
            self._exchange = None
        if exchange.is_reusable:
            self.idle_since_s = loop.time()
        else:
            self.abort()
        return answer

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self._exchange is None:
            self.abort()  # an answer that nobody asked for
        else:
            self._exchange.take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._transport = None
        self._on_lost(self)
        if self._exchange is not None:
            self._exchange.end(exc)


class _Exchange:
    """One request's answer growing. httptools calls its ``on_…`` methods."""

    __slots__ = (
        "_deadline_s",
        "_has_begun",
        "_has_head",
        "_headers",
        "_heard_at_s",
        "_inflate",
        "_loop",
        "_max_bytes",
        "_num_bytes",
        "_on_event_bytes",
        "_parser",
        "_pieces",
        "_read_timeout_s",
        "_started_at_s",
        "_status",
        "_timer",
        "_url",
        "answered",
        "is_reusable",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        url: str,
        deadline_s: float,
        read_timeout_s: float | None,
        max_bytes: int,
        on_event_bytes: Callable[[bytes], None] | None,
    ) -> None:
        self._loop = loop
        self._url = url
        self._started_at_s = self._heard_at_s = loop.time()
        self._deadline_s = deadline_s
        self._read_timeout_s = read_timeout_s
        self._max_bytes = max_bytes
        self._on_event_bytes = on_event_bytes
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._num_bytes = 0
        self._has_begun = self._has_head = False
        self._inflate: zlib._Decompress | None = None
        self._parser = httptools.HttpResponseParser(self)
        self.is_reusable = False
        self.answered: asyncio.Future[Answer] = loop.create_future()
        self._timer = loop.call_at(self._due_s(), self._on_timer)

    def take(self, data: bytes) -> None:
        """Take the next bytes from the server."""
        self._heard_at_s = self._loop.time()
        self._num_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(InvalidResponseError(f"{self._url} does not answer in HTTP: {error}."))
        if self._num_bytes > self._max_bytes and not self.answered.done():
            self._give_up_long()

    def end(self, error: Exception | None) -> None:
        """The connection ended: which is the end of an answer without a length, and of nothing else."""
        has_length = b"content-length" in self._headers or b"transfer-encoding" in self._headers
        if error is None and self._has_head and not has_length:
            self._finish(is_reusable=False)
            return
        when = "within" if self._has_begun else "before"
        why = f": {error}" if error is not None else ""
        self._fail(ConnectionDroppedError(f"The connection to {self._url} ended {when} the answer{why}."))

    def close(self) -> None:
        """Let go of the timer, and of the parser: it points back here, and 10,000 such rings a second cost."""
        self._timer.cancel()
        del self._parser

    def on_message_begin(self) -> None:
        """A second answer in the same bytes makes the connection unfit for more."""
        if self.answered.done():
            self.is_reusable = False
        self._has_begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Decide what is done with the body."""
        self._status = self._parser.get_status_code()
        if self._status < _OK:
            return
        self._has_head = True
        encoding = self._headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding in {b"gzip", b"x-gzip", b"deflate"}:
            self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        elif encoding not in {b"identity", b""}:
            self._fail(InvalidResponseError(f"{self._url} answers in an encoding not asked for: {encoding!r:.40}."))
        if self._status != _OK:
            self._max_bytes = min(self._max_bytes, MAX_ERROR_BYTES)
        is_events = self._headers.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        if self._status != _OK or not is_events:
            self._on_event_bytes = None

    def on_body(self, piece: bytes) -> None:
        """Keep a piece of the body, or hand it on."""
        if self.answered.done():
            return
        if self._inflate is not None:
            piece = self._inflated(piece)
        if self._on_event_bytes is None:
            self._pieces.append(piece)
            return
        try:
            self._on_event_bytes(piece)
        except RequestError as error:
            self._fail(error)

    def on_message_complete(self) -> None:
        """The answer is whole; an interim one (1xx) is passed over."""
        if self._status < _OK:
            self._headers.clear()
            self._has_begun = False
        else:
            self._finish(is_reusable=self._parser.should_keep_alive())

    def _inflated(self, piece: bytes) -> bytes:
        assert self._inflate is not None
        room = max(1, self._max_bytes - sum(map(len, self._pieces)) + 1)
        try:
            piece = self._inflate.decompress(piece, room)
        except zlib.error as error:
            self._fail(InvalidResponseError(f"The answer of {self._url} cannot be decompressed: {error}."))
            return b""
        if self._inflate.unconsumed_tail:
            self._give_up_long()
        return piece

    def _finish(self, *, is_reusable: bool) -> None:
        if self.answered.done():
            return
        self.is_reusable = is_reusable
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self.answered.set_result(Answer(self._status, self._headers, body, self._on_event_bytes is not None))

    def _give_up_long(self) -> None:
        if self._has_head and self._status != _OK:
            self._finish(is_reusable=False)
        else:
            self._fail(InvalidResponseError(f"The answer of {self._url} is longer than {self._max_bytes} bytes."))

    def _fail(self, error: RequestError) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)

    def _due_s(self) -> float:
        if self._read_timeout_s is None:
            return self._deadline_s
        return min(self._deadline_s, self._heard_at_s + self._read_timeout_s)

    def _on_timer(self) -> None:
        now_s = self._loop.time()
        if now_s < self._due_s():
            self._timer = self._loop.call_at(self._due_s(), self._on_timer)
            return
        what = "whole answer" if now_s >= self._deadline_s else "further byte"
        elapsed_s = now_s - self._started_at_s
        self._fail(RequestTimeoutError(f"No {what} from {self._url} after {elapsed_s:.1f} s."))
