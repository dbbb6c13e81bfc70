"""Several servers behind one address: each new connection goes to the next one, as a Kubernetes Service does it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence


async def take_turns(ports: Sequence[int]) -> asyncio.Server:
    """Return a listening socket of this machine whose connections go to its `ports` in turn."""
    turns = itertools.cycle(ports)
    return await asyncio.get_running_loop().create_server(lambda: _Inward(next(turns)), "127.0.0.1", 0, backlog=4096)


class _Half(asyncio.Protocol):
    """One side of a connection; what comes goes to the other side."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: asyncio.Transport | None = None
        self._kept = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be ready."""
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Pass it on, as soon as there is another side."""
        if self.other is None:
            self._kept += data
        else:
            self.other.write(data)

    def join(self, other: asyncio.Transport) -> None:
        """Take the other side."""
        self.other = other
        other.write(self._kept)

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other side too."""
        if self.other is not None:
            self.other.abort()


class _Inward(_Half):
    """The side of the client."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect to the server."""
        super().connection_made(transport)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        assert self.transport is not None
        outward = _Half()
        try:
            await asyncio.get_running_loop().create_connection(lambda: outward, "127.0.0.1", self._port)
        except OSError:
            self.transport.abort()
            return
        assert outward.transport is not None
        outward.join(self.transport)
        self.join(outward.transport)
