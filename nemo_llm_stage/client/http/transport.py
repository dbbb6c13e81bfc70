"""
The seam between the client and its connections: one HTTP exchange, bytes out and bytes back.

Every failure comes out as one of our types. Knows nothing of LLMs; `http1` is the implementation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

OnEventBytes = Callable[[bytes], bool]
"""Takes the next bytes of an event stream, cut anywhere; returns whether the stream's content is whole."""


class HTTPResponse(NamedTuple):
    """
    What came back.

    Attributes:
        status: HTTP status.
        headers: By lower-case name; of a name that came twice, the last.
        body: Whole, decompressed; empty where an event stream was handed on in pieces.
        was_streamed: The body was an event stream and has been handed on.
    """

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes
    was_streamed: bool = False

    def header(self, name: str) -> str | None:
        """Return a header's text by its lower-case name; None where there is none."""
        value = self.headers.get(name.encode())
        return None if value is None else value.decode("latin-1")


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """
    How to connect.

    Attributes:
        headers: Sent with every request, by lower-case name.
        timeout_s: From sending to the whole response, connecting included.
        connect_timeout_s: For the connection, TLS and proxy included.
        read_timeout_s: Longest silence of the server, before its first byte too; None for none.
        max_response_bytes: A response longer than this fails, streamed or not, as sent and as decompressed.
        ca_file: PEM file of certificates to trust beside the usual ones; None for none.
        cert_file: PEM file of a certificate that the client shows, its private key included or in `key_file`.
        key_file: PEM file of the private key to `cert_file`.
        proxy: Used for every host but this machine; None for what HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say.
    """

    headers: Mapping[str, str] = field(repr=False)
    timeout_s: float
    connect_timeout_s: float
    read_timeout_s: float | None
    max_response_bytes: int
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    proxy: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TransportStatistics:
    """
    How the connections of a transport stand.

    Attributes:
        num_open: Connections open now, idle ones included.
        num_idle: Connections open now without a request.
        num_connects: Connections opened so far.
        drops: Connections closed so far, by cause; the causes are the values of `connection.DropCause`.
        single_use_servers: ``http(s)://host:port`` of each server whose connections are used once, because it sent
            bytes that no request had asked for again and again.
        num_unasked: ``http(s)://host:port`` of a server → connections to it that were closed for such bytes.
    """

    num_open: int = 0
    num_idle: int = 0
    num_connects: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)
    single_use_servers: tuple[str, ...] = ()
    num_unasked: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def sum_of(parts: Iterable[TransportStatistics]) -> TransportStatistics:
        """Return the sum of the statistics of several transports."""
        whole = list(parts)
        servers = dict.fromkeys(server for part in whole for server in part.single_use_servers)
        drops, num_unasked = Counter[str](), Counter[str]()
        for part in whole:
            drops.update(part.drops)
            num_unasked.update(part.num_unasked)
        return TransportStatistics(
            sum(part.num_open for part in whole),
            sum(part.num_idle for part in whole),
            sum(part.num_connects for part in whole),
            dict(drops),
            tuple(servers),
            dict(num_unasked),
        )


class Transport(ABC):
    """HTTP exchanges, any number at once, on one event loop."""

    @abstractmethod
    async def send(
        self,
        url: str,
        body: bytes | None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        on_event_bytes: OnEventBytes | None = None,
    ) -> HTTPResponse:
        """
        POST `body` to `url`, or GET it where `body` is None, and return the response whatever its status.

        Cancelling closes the connection, so that the server can stop working on it.

        Args:
            url: Absolute.
            body: JSON.
            headers: Take the place of the transport's own of the same name.
            timeout_s: Total; None for the transport's own.
            on_event_bytes: Takes the pieces of a response that is an event stream, as they come. The response is
                returned once it says that the content is whole, even if the server leaves the stream open.

        Raises:
            TransientError: There was no whole response.
            BadRequestError: The request cannot be written, e.g. a line break in a header.
            ConfigError: The certificates or the proxy cannot be used.
        """

    def statistics(self) -> TransportStatistics:
        """Return how the connections stand."""
        return TransportStatistics()

    async def aclose(self) -> None:  # noqa: B027 - a hook: not every transport holds something
        """Close every connection."""
