"""
A proxy that makes an S3 server answer later: `python s3_proxy.py http://HOST:PORT LATENCY_S` prints its own URL.

It passes each request on after a while, and the bytes of both sides as they are. ``GET /calls`` tells how many requests
of each kind have come since the last look, ``GET /bytes`` how many bytes. What a client sends at once after an answer
is taken for one request's beginning, as S3's clients do; it knows nothing else of HTTP.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from typing import cast
from urllib.parse import urlsplit

from s3_calls import kind_of

_BEGINNING = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) (/[^ ?]*)\??([^ ]*) HTTP/1\.1\r\n")


class Side(asyncio.Protocol):
    """One end of a connection; writes what comes to the other end."""

    def __init__(self, kind: str, num_bytes: Counter[str], other: Side | None = None) -> None:
        self.other = other
        self._kind = kind
        self._num_bytes = num_bytes
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._num_bytes[self._kind] += len(data)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class Client(Side):
    """The side of a client; its requests wait, and are counted."""

    def __init__(self, host: str, port: int, latency_s: float, calls: Counter[str], num_bytes: Counter[str]) -> None:
        super().__init__("sent", num_bytes, Side("received", num_bytes, self))
        self._place = (host, port)
        self._latency_s = latency_s
        self._calls = calls
        self._held: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        beginning = None if self._held else _BEGINNING.match(data)
        if beginning is None:
            if self._held:
                self._held.append(data)
            else:
                super().data_received(data)
            return
        method, path, query = (part.decode("latin-1") for part in beginning.groups())
        if path in ("/calls", "/bytes"):
            self._tell(self._calls if path == "/calls" else self._num_bytes)
            return
        self._calls[kind_of(method, path, query)] += 1
        self._held.append(data)
        loop = asyncio.get_running_loop()
        loop.call_later(self._latency_s, lambda: loop.create_task(self._pass_on()))

    async def _pass_on(self) -> None:
        other = self.other
        assert other is not None
        if other.transport is None:
            await asyncio.get_running_loop().create_connection(lambda: other, *self._place)
        held, self._held = self._held, []
        super().data_received(b"".join(held))

    def _tell(self, counts: Counter[str]) -> None:
        body = json.dumps(counts).encode()
        counts.clear()
        assert self.transport is not None
        self.transport.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        self.transport.write(body)
        self.transport.close()


async def serve(url: str, latency_s: float) -> None:
    """Serve until killed."""
    parts, calls, num_bytes = urlsplit(url), Counter[str](), Counter[str]()
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    server = await asyncio.get_running_loop().create_server(
        lambda: Client(host, port, latency_s, calls, num_bytes), "127.0.0.1", 0, backlog=1024
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(sys.argv[1], float(sys.argv[2])))
    else:
        uvloop.run(serve(sys.argv[1], float(sys.argv[2])))
