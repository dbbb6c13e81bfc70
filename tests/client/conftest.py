"""A server that answers with the bytes it is told to, for what no well-behaved server does."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Self

import pytest

MESSAGES = [{"role": "user", "content": "What is a mole?"}]
CLOSE = None
"""In a script: close the connection."""


def answer_bytes(text: str = "fine", **choice: Any) -> bytes:
    """The body of a chat answer."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}]}).encode()


def response(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """An HTTP response with a length."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class RawServer:
    """
    Answers the requests of all connections from one script, in order; the last entry repeats.

    Args:
        script: For each request the pieces to write, one after another; None closes the connection.
    """

    def __init__(self, *script: list[bytes | None]) -> None:
        self.script = list(script)
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.num_connections = 0
        self.asked = asyncio.Event()
        self.all_closed = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        if self._writers:
            self.all_closed.clear()
            for writer in self._writers:
                writer.transport.abort()
            await self.all_closed.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lengths = [line for line in head.lower().split("\r\n") if line.startswith("content-length:")]
                length = int(lengths[0].partition(":")[2]) if lengths else 0
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(length))
                self.asked.set()
                for piece in self.script.pop(0) if len(self.script) > 1 else self.script[0]:
                    if piece is CLOSE:
                        return
                    writer.write(piece)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self._writers.discard(writer)
            if not self._writers:
                self.all_closed.set()


@pytest.fixture
def raw_server() -> type[RawServer]:
    return RawServer


@pytest.fixture(autouse=True)
def no_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own proxies stay out of the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
