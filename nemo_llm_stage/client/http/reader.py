"""
The responses on one connection as they arrive: bytes in; an `HTTPResponse`, or one of our errors, out.

Bytes are parsed by httptools (llhttp, the parser of Node.js). Whatever the server sends, a step of the work is small,
and memory stays within `limits`. Knows nothing of sockets, pools or LLMs.
"""

from __future__ import annotations

import asyncio
import zlib

import httptools

from nemo_llm_stage.client.http.body import Body, appended
from nemo_llm_stage.client.http.bounds import (
    COMPARED_BYTES,
    LINGER_S,
    MAX_ERROR_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_INTERIM_RESPONSES,
    SLICE_BYTES,
)
from nemo_llm_stage.client.http.inflate import Inflater
from nemo_llm_stage.client.http.transport import HTTPResponse, OnEventBytes
from nemo_llm_stage.errors import ConnectionDroppedError, InvalidResponseError, RequestTimeoutError

_OK = 200


class ResponseReader:
    """
    Reads one response after another. httptools calls the ``on_…`` methods.

    Args:
        loop: The running event loop.

    Attributes:
        response: Done with the response that is being read, or with the error.
        is_reusable: Whether the server lets the connection be used again; known once `response` is done.
        has_work: Whether `step` has more to do with the bytes taken so far.
        heard_at_s: Loop time of the last bytes; that of the start before the first.
        unread: Slices that wait to be parsed.
        has_overrun: More bytes came than the response had.
        fingerprint: CRC-32 of the content's beginning, 0 for no content; known once `response` is done with a response.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._clear()

    def begin(
        self,
        url: str,
        now_s: float,
        deadline_s: float,
        read_timeout_s: float | None,
        max_bytes: int,
        on_event_bytes: OnEventBytes | None,
    ) -> asyncio.Future[HTTPResponse]:
        """
        Return what will be done with the next response.

        Args:
            url: For messages.
            now_s: Loop time.
            deadline_s: Loop time by which the whole response must be there.
            read_timeout_s: Longest silence; None for none.
            max_bytes: Longest response, as sent and as decompressed.
            on_event_bytes: Takes the pieces of an event stream; None keeps them as the body.
        """
        self._url = url
        self._started_at_s = self.heard_at_s = now_s
        self._deadline_s = deadline_s
        self._read_timeout_s = read_timeout_s
        self._max_bytes = max_bytes
        self._on_event_bytes = on_event_bytes
        self._status = self._num_interim = 0
        self._num_received_bytes = self._num_framing_bytes = self._num_kept_bytes = 0
        self._has_begun = self._has_head = self._is_complete = False
        self.is_reusable = self.has_overrun = self.has_work = False
        self.fingerprint = 0
        self.response: asyncio.Future[HTTPResponse] = self._loop.create_future()
        return self.response

    def end_response(self) -> None:
        """Let go of the response."""
        if self._linger is not None:
            self._linger.cancel()
        self._clear()
        del self.response

    def _clear(self) -> None:
        self._linger: asyncio.TimerHandle | None = None
        self._on_event_bytes = None
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._kept: bytes | bytearray = b""
        self._body: Body | None = None
        self.unread: list[bytes] = []

    def take(self, data: bytes) -> None:
        """Take the next bytes from the server; where they are many, most are left for `step`."""
        if self.response.done():
            self.has_overrun, self.is_reusable = True, False
            return
        self.heard_at_s = self._loop.time()
        self._num_received_bytes += len(data)
        if len(data) <= SLICE_BYTES and not self.has_work:
            self._parse(data)
        else:
            self.unread += [data[start : start + SLICE_BYTES] for start in range(0, len(data), SLICE_BYTES)]
            self.has_work = True

    def step(self) -> bool:
        """Do a small part of the work; return whether there is more."""
        if self._body is not None and self._body.has_input:
            self._put_body(None)
            self._check_end()
        elif self.unread:
            self._parse(self.unread.pop(0))
        self.has_work = not self.response.done() and (
            bool(self.unread) or (self._body is not None and self._body.has_input)
        )
        return self.has_work

    def end(self, error: Exception | None) -> None:
        """Take note that the connection ended: the end of a response without a length, a failure of any other."""
        has_length = b"content-length" in self._headers or b"transfer-encoding" in self._headers
        is_whole = self._body is not None and self._body.is_whole
        if is_whole or (error is None and self._has_head and not has_length):
            self._finish()
            return
        when = "within" if self._has_begun else "before"
        why = f": {error}" if error is not None else ""
        self._fail(ConnectionDroppedError(f"The connection to {self._url} ended {when} the response{why}."))

    def close(self) -> None:
        """Let go of the parser, which points back here. No other response can follow."""
        del self._parser

    def on_message_begin(self) -> None:
        """Called by the parser. A second response in the same bytes makes the connection unfit for more."""
        if self._is_complete:
            self.has_overrun = True
        self._has_begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser, for trailers too, which are left out."""
        if not self._has_head:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Called by the parser. Decides what is done with the body."""
        if self._has_head:
            return
        self._status = self._parser.get_status_code()
        if len(self._headers) > MAX_HEADERS:
            self._fail(InvalidResponseError(f"The response of {self._url} has more than {MAX_HEADERS} headers."))
        if self._status < _OK:
            return
        self._has_head = True
        is_events = self._headers.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        if self._status != _OK:
            self._max_bytes = min(self._max_bytes, MAX_ERROR_BYTES)
        if self._status != _OK or not is_events:
            self._on_event_bytes = None
        encoding = self._headers.get(b"content-encoding")
        if encoding is not None or self._on_event_bytes is not None:
            self._body = self._make_body((encoding or b"identity").strip().lower())

    def on_body(self, piece: bytes) -> None:
        """Called by the parser."""
        if not self._is_complete:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """Called by the parser. An interim response (1xx) is ignored."""
        if self._is_complete:
            return
        if self._status >= _OK:
            self._is_complete = True
            self.is_reusable = self._parser.should_keep_alive()  # the parser forgets it with the next byte
            return
        self._headers.clear()
        self._has_begun = False
        self._num_interim += 1
        if self._num_interim > MAX_INTERIM_RESPONSES:
            self._fail(InvalidResponseError(f"{self._url} sends one interim response after another."))

    def _make_body(self, encoding: bytes) -> Body:
        is_compressed = encoding in {b"gzip", b"x-gzip", b"deflate"}
        if not is_compressed and encoding not in {b"identity", b""}:
            self._fail(InvalidResponseError(f"{self._url} responds in an encoding not asked for: {encoding!r:.40}."))
        return Body(Inflater() if is_compressed else None, self._on_event_bytes)

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._is_complete:
                self.has_overrun = True
            else:
                self._fail(InvalidResponseError(f"{self._url} does not answer in HTTP: {error}."))
        if self._pieces:
            piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            self._num_framing_bytes = 0
            if self._body is not None:
                self._put_body(piece)
            else:
                self._num_kept_bytes += len(piece)
                self._kept = piece if not self._kept else appended(self._kept, piece)
        else:
            self._num_framing_bytes += len(data)
        self._check_end()

    def _put_body(self, piece: bytes | None) -> None:
        """Put `piece` into the body, or with None decompress more of what is in there."""
        body = self._body
        if body is None or self.response.done():
            return
        was_whole = body.is_whole
        try:
            if piece is None:
                body.step()
            else:
                body.put(piece)
            self.has_work = body.has_input
        except zlib.error as error:
            if self._status != _OK:
                self._finish()
            self._fail(InvalidResponseError(f"The response of {self._url} cannot be decompressed: {error}."))
        except Exception as error:  # noqa: BLE001 - of whoever takes the events: the waiting request fails with it
            self._fail(error)
        if body.is_whole and not was_whole:
            self._linger = self._loop.call_later(LINGER_S, self._finish)

    def _check_end(self) -> None:
        """Finish or fail if what has been read so far says so."""
        body = self._body
        num_bytes = self._num_kept_bytes if body is None else body.num_bytes
        if num_bytes > self._max_bytes or self._num_received_bytes > self._max_bytes + MAX_HEAD_BYTES:
            self._give_up_long()
        elif self._is_complete:
            if body is None or not body.has_input:
                self._finish()
        elif self._num_framing_bytes > MAX_HEAD_BYTES:
            self._fail(InvalidResponseError(f"{self._url} sends more than {MAX_HEAD_BYTES} bytes without content."))

    def _finish(self) -> None:
        if self.response.done():
            return
        body = self._body
        if body is not None and body.is_cut and self._status == _OK:
            self._fail(ConnectionDroppedError(f"The compressed response of {self._url} is cut off."))
            return
        if self.unread:
            self.has_overrun = True
            self.unread.clear()
        self.is_reusable = self.is_reusable and self._is_complete and not self.has_overrun
        content = bytes(self._kept) if body is None else body.content
        was_streamed = self._on_event_bytes is not None
        self.fingerprint = body.checksum if body is not None and was_streamed else zlib.crc32(content[:COMPARED_BYTES])
        self.response.set_result(HTTPResponse(self._status, self._headers, content, was_streamed))

    def _give_up_long(self) -> None:
        if self._has_head and self._status != _OK:
            self._finish()
        else:
            self._fail(InvalidResponseError(f"The response of {self._url} is longer than {self._max_bytes} bytes."))

    def _fail(self, error: Exception) -> None:
        if not self.response.done():
            self.unread.clear()
            self.response.set_exception(error)

    def due_s(self) -> float:
        """Return the loop time at which the response is too late."""
        if self._read_timeout_s is None:
            return self._deadline_s
        return min(self._deadline_s, self.heard_at_s + self._read_timeout_s)

    def time_out(self, now_s: float) -> None:
        """Fail: the response is too late."""
        what = "whole response" if now_s >= self._deadline_s else "further byte"
        self._fail(RequestTimeoutError(f"No {what} from {self._url} after {now_s - self._started_at_s:.1f} s."))
