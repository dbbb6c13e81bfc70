"""
How an answer is sent: whole, as a stream, or broken as a fault says.

Knows exchanges and bytes; nothing of models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nemo_llm_stage.testing.simulator.faults import Fault
from nemo_llm_stage.testing.simulator.protocol import Exchange, head_of

_OK = 200
_HTML = b"<html><head><title>Welcome</title></head><body><h1>Please sign in</h1></body></html>"
_EVENT_STREAM = "text/event-stream; charset=utf-8"
_NUM_DRIPS = 10
_ENDLESS_PAUSE_S = 0.01


def open_stream(exchange: Exchange, events: list[bytes]) -> None:
    """Begin a stream with its first events."""
    exchange.start_chunked(_EVENT_STREAM)
    if events:
        exchange.send_chunks(*events)


def deliver_body(exchange: Exchange, body: bytes, fault: Fault | None) -> None:
    """Send an answer that comes in one piece."""
    kind = None if fault is None else fault.kind
    head = head_of(_OK, "application/json", len(body), exchange.rate_headers)
    if kind == "half_body":
        exchange.send(head + body[: len(body) // 2])
        exchange.hang_up()
    elif kind == "wrong_length":
        exchange.send(head_of(_OK, "application/json", len(body) // 2, "") + body)
        exchange.hang_up()
    elif kind == "html":
        exchange.reply(_OK, _HTML, content_type="text/html")
    elif kind == "endless_stream":
        exchange.start_chunked("application/json")
        _repeat(exchange, b" ")
    elif kind == "slow_drip" and fault is not None:
        exchange.send(head)
        _drip(exchange, _cut(body), fault.seconds, exchange.send, exchange.complete)
    elif not _break_off(exchange, kind):
        exchange.send(head + body)
        exchange.complete()


def deliver_events(exchange: Exchange, events: list[bytes], fault: Fault | None) -> None:
    """Send the rest of a stream that `open_stream` began."""
    kind = None if fault is None else fault.kind
    if kind in ("half_body", "wrong_length"):
        exchange.send_chunks(*events[: len(events) // 2])
        exchange.hang_up()
    elif kind == "endless_stream":
        _repeat(exchange, events[0])
    elif kind == "slow_drip" and fault is not None:
        _drip(exchange, events, fault.seconds, exchange.send_chunks, exchange.end_chunked)
    elif not _break_off(exchange, kind):
        exchange.send_chunks(*events)
        exchange.end_chunked()


def _break_off(exchange: Exchange, kind: object) -> bool:
    if kind == "drop":
        exchange.hang_up()
    elif kind == "reset":
        exchange.reset()
    return kind in ("drop", "reset")


def _cut(body: bytes) -> list[bytes]:
    size = max(1, -(-len(body) // _NUM_DRIPS))
    return [body[start : start + size] for start in range(0, len(body), size)]


def _drip(
    exchange: Exchange, pieces: list[bytes], seconds: float, send: Callable[[bytes], None], end: Callable[[], None]
) -> None:
    pause_s = seconds / len(pieces)

    def step(index: int) -> None:
        if exchange.connection.transport.is_closing():
            return
        send(pieces[index])
        if index + 1 == len(pieces):
            end()
        else:
            asyncio.get_running_loop().call_later(pause_s, step, index + 1)

    step(0)


def _repeat(exchange: Exchange, piece: bytes) -> None:
    if not exchange.connection.transport.is_closing():
        exchange.send_chunks(piece)
        asyncio.get_running_loop().call_later(_ENDLESS_PAUSE_S, _repeat, exchange, piece)
