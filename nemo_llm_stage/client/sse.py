"""
Server-sent events out of bytes in any cut.

The work is linear in the bytes, and what is held is bounded. Source: WHATWG HTML §9.2 (server-sent events). Knows of
what the events say only how it begins and ends.
"""

from __future__ import annotations

from typing import NamedTuple

from nemo_llm_stage.errors import InvalidResponseError

MAX_EVENT_BYTES = 16 << 20
"""Longest event, and longest line of any kind."""

DONE = b"[DONE]"
"""The data of the last event, in the OpenAI protocol."""

_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """
    One event.

    Attributes:
        name: Its ``event`` field; empty where it has none.
        data: Its ``data`` lines, joined with line feeds.
    """

    name: bytes
    data: bytes


class EventReader:
    """
    Takes the pieces of one stream as they come and returns its events.

    Lines end in CR, LF or CRLF. Four things are read that the standard does not have. `DONE` is an event at once,
    without the blank line after it. So is a JSON object in one ``data`` line where another object or `DONE` is in the
    next. A line ``error: …`` is an event of the name ``error``. A line that is a JSON object without any field name is
    an event: gateways put errors so.
    """

    __slots__ = ("_after_cr", "_data", "_has_begun", "_name", "_num_data_bytes", "_num_rest_bytes", "_rest")

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._num_rest_bytes = 0
        self._after_cr = False
        self._has_begun = False
        self._name = b""
        self._data: list[bytes] = []
        self._num_data_bytes = 0

    def feed(self, piece: bytes) -> list[Event]:
        """
        Take the next bytes, cut anywhere, and return the events that end in them.

        Raises:
            InvalidResponseError: An event or a line is longer than `MAX_EVENT_BYTES`.
        """
        if self._is_plain(piece):
            return [Event(b"", piece[6:-2])]
        events: list[Event] = []
        if self._after_cr and piece:
            self._after_cr = False
            piece = piece.removeprefix(b"\n")
        end = max(piece.rfind(b"\n"), piece.rfind(b"\r")) + 1
        if not end:
            self._keep(piece)
            return events
        block = piece[:end]
        if self._rest:
            block = b"".join([*self._rest, block])
            self._rest.clear()
            self._num_rest_bytes = 0
        self._after_cr = block.endswith(b"\r")
        for line in block.splitlines():
            self._take_line(line, events)
        self._keep(piece[end:])
        return events

    def end(self) -> list[Event]:
        """Return the events that lack their line end or their blank line; to be called when the stream has ended."""
        events: list[Event] = []
        if self._rest:
            self._take_line(b"".join(self._rest), events)
            self._rest.clear()
        self._end_event(events)
        return events

    def _is_plain(self, piece: bytes) -> bool:
        """Whether `piece` is one whole event in one ``data`` line, as it mostly is."""
        return (
            piece.startswith(b"data: ")
            and piece.find(b"\n") == len(piece) - 2
            and piece.endswith(b"\n")
            and b"\r" not in piece
            and not (self._rest or self._data or self._name or self._after_cr)
            and self._has_begun
        )

    def _keep(self, rest: bytes) -> None:
        if rest:
            self._rest.append(rest)
            self._num_rest_bytes += len(rest)
            _check(self._num_rest_bytes)

    def _take_line(self, line: bytes, events: list[Event]) -> None:
        if not self._has_begun:
            self._has_begun = True
            line = line.removeprefix(_BOM)
        if not line:
            self._end_event(events)
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._take_data(value, events)
        elif name == b"event":
            self._name = value.strip()
        elif name == b"error":
            events.append(Event(b"error", value))
        elif line.startswith(b"{") and line.endswith(b"}"):
            events.append(Event(b"", line))

    def _take_data(self, value: bytes, events: list[Event]) -> None:
        is_done = value.strip() == DONE
        if self._data and self._data[-1].endswith(b"}") and (is_done or value.startswith(b"{")):
            self._end_event(events)
        if is_done:
            events.append(Event(b"", DONE))
            return
        self._data.append(value)
        self._num_data_bytes += len(value) + 1
        _check(self._num_data_bytes)

    def _end_event(self, events: list[Event]) -> None:
        data = self._data
        if data:
            events.append(Event(self._name, data[0] if len(data) == 1 else b"\n".join(data)))
            self._data, self._num_data_bytes = [], 0
        self._name = b""


def _check(num_bytes: int) -> None:
    if num_bytes > MAX_EVENT_BYTES:
        raise InvalidResponseError(f"An event of the stream is longer than {MAX_EVENT_BYTES} bytes.")
