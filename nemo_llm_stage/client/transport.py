"""
One HTTP exchange: bytes out, bytes back, and every failure of the connection as one of our types.

The seam between the client and its HTTP library, here pyreqwest; nothing else imports it. Knows nothing of LLMs.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from urllib.request import getproxies_environment

import pyreqwest.exceptions as rq
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.proxy import ProxyBuilder
from pyreqwest.request import RequestBuilder
from pyreqwest.response import Response

from nemo_llm_stage.errors import (
    BadRequestError,
    ConfigError,
    ConnectionDroppedError,
    ConnectionFailedError,
    InvalidResponseError,
    RequestError,
    RequestTimeoutError,
)

POOL_IDLE_S = 4.0
"""Idle sockets are closed after this long: before the server does, which uvicorn does after 5 s (its default)."""

MAX_ERROR_BODY_BYTES = 64 * 1024
"""Read of an error's body; the rest is left with the connection, which is closed."""

_LOOPBACK = "localhost,127.0.0.0/8,::1"


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What came back.

    Attributes:
        status: HTTP status.
        body: Whole, decompressed; empty where an event stream was handed on in pieces.
        header: Returns a header's text by its name in any case; None where there is none.
        was_streamed: The body was an event stream and has been handed on.
    """

    status: int
    body: bytes
    header: Callable[[str], str | None]
    was_streamed: bool = False


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """
    How to connect.

    Attributes:
        headers: Sent with every request.
        timeout_s: From sending to the whole answer.
        connect_timeout_s: For the connection, TLS included.
        read_timeout_s: Longest silence of the server, before its first byte too; None for none.
        max_response_bytes: An answer longer than this is given up.
        ca_pem: Certificates to trust beside the usual ones; None for none.
        proxy: Used for every host but this machine; None for what HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say.
    """

    headers: Mapping[str, str] = field(repr=False)
    timeout_s: float
    connect_timeout_s: float
    read_timeout_s: float | None
    max_response_bytes: int
    ca_pem: bytes | None = field(default=None, repr=False)
    proxy: str | None = field(default=None, repr=False)


class Transport(ABC):
    """One HTTP exchange at a time; as many at once as are asked for."""

    @abstractmethod
    async def send(
        self,
        url: str,
        body: bytes | None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        on_event_bytes: Callable[[bytes], None] | None = None,
    ) -> Answer:
        """
        POST `body` to `url`, or GET it where `body` is None, and return the answer whatever its status.

        Args:
            url: Absolute.
            body: JSON.
            headers: Beside the transport's own, and before them.
            timeout_s: Total; None for the transport's own.
            on_event_bytes: Takes the pieces of an answer that is an event stream, as they come.

        Raises:
            TransientError: There was no whole answer.
            BadRequestError: The request cannot be written, e.g. a line break in a header.
        """

    async def aclose(self) -> None:  # noqa: B027 - a hook: not every transport holds something
        """Close every connection."""


class PyreqwestTransport(Transport):
    """
    HTTP/1.1 on a pool of kept-alive connections. TLS is verified, redirects are not followed.

    Raises:
        ConfigError: The certificates or the proxy cannot be used.
    """

    def __init__(self, config: TransportConfig) -> None:
        self._config = config
        try:
            self._client = _build(config)
        except (ValueError, rq.PyreqwestError) as error:
            raise ConfigError(f"The HTTP client cannot be made: {_last_cause(error)}.") from None

    async def send(
        self,
        url: str,
        body: bytes | None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        on_event_bytes: Callable[[bytes], None] | None = None,
    ) -> Answer:
        """See `Transport.send`."""
        started_monotonic_s = time.monotonic()
        try:
            request = self._client.get(url) if body is None else self._client.post(url).body_bytes(body)
            async with _with_options(request, headers, timeout_s).build_streamed() as response:
                return await self._read(response, on_event_bytes)
        except (rq.PyreqwestError, ValueError) as error:
            elapsed_s = time.monotonic() - started_monotonic_s
            raise _as_our_error(error, url, elapsed_s) from error

    async def _read(self, response: Response, on_event_bytes: Callable[[bytes], None] | None) -> Answer:
        status = response.status
        is_success = status == HTTPStatus.OK
        max_bytes = self._config.max_response_bytes if is_success else MAX_ERROR_BODY_BYTES
        is_events = is_success and on_event_bytes is not None and _is_event_stream(response)
        pieces, num_bytes = [], 0
        reader = response.body_reader
        while (piece := await reader.read_chunk()) is not None:
            num_bytes += len(piece)
            if num_bytes > max_bytes:
                if not is_success:
                    break
                raise InvalidResponseError(f"The answer is longer than max_response_bytes ({max_bytes}).")
            if is_events and on_event_bytes is not None:
                on_event_bytes(bytes(piece))
            else:
                pieces.append(piece)
        return Answer(status, b"".join(map(bytes, pieces)), response.get_header, is_events)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.close()


def _build(config: TransportConfig) -> Client:
    builder = (
        ClientBuilder()
        .http1_only()
        .follow_redirects(False)
        .referer(False)
        .tcp_nodelay(True)
        .user_agent("nemo-llm-stage")
        .default_headers(dict(config.headers))
        .timeout(timedelta(seconds=config.timeout_s))
        .connect_timeout(timedelta(seconds=config.connect_timeout_s))
        .pool_idle_timeout(timedelta(seconds=POOL_IDLE_S))
        .no_proxy()  # off first: the environment's is added below, without this machine's own addresses
    )
    if config.read_timeout_s is not None:
        builder = builder.read_timeout(timedelta(seconds=config.read_timeout_s))
    if config.ca_pem is not None:
        for certificate in _certificates(config.ca_pem):
            builder = builder.add_root_certificate_pem(certificate)
    for proxy in _proxies(config.proxy):
        builder = builder.proxy(proxy)
    return builder.build()


def _certificates(pem: bytes) -> list[bytes]:
    end = b"-----END CERTIFICATE-----"
    parts = [part.strip() + b"\n" + end for part in pem.split(end) if b"BEGIN CERTIFICATE" in part]
    if not parts:
        raise ValueError("the CA file holds no PEM certificate")
    return parts


def _proxies(proxy: str | None) -> list[ProxyBuilder]:
    if proxy is not None:
        return [ProxyBuilder.all(proxy).no_proxy(_LOOPBACK)]
    found = getproxies_environment()
    no_proxy = ",".join(filter(None, (found.get("no"), _LOOPBACK)))
    builders = {"http": ProxyBuilder.http, "https": ProxyBuilder.https}
    urls = {scheme: found.get(scheme) or found.get("all") for scheme in builders}
    return [builders[scheme](url).no_proxy(no_proxy) for scheme, url in urls.items() if url]


def _with_options(
    request: RequestBuilder, headers: Mapping[str, str] | None, timeout_s: float | None
) -> RequestBuilder:
    if headers:
        request = request.headers(headers)
    return request if timeout_s is None else request.timeout(timedelta(seconds=timeout_s))


def _is_event_stream(response: Response) -> bool:
    return (response.get_header("content-type") or "").lower().startswith("text/event-stream")


ERRORS: Mapping[type[Exception], type[RequestError]] = {
    rq.PyreqwestError: ConnectionDroppedError,
    rq.DetailedPyreqwestError: ConnectionDroppedError,
    rq.RequestError: ConnectionDroppedError,
    rq.TransportError: ConnectionDroppedError,
    rq.NetworkError: ConnectionDroppedError,
    rq.ConnectError: ConnectionDroppedError,
    rq.ReadError: ConnectionDroppedError,
    rq.WriteError: ConnectionDroppedError,
    rq.ClientClosedError: ConnectionDroppedError,
    rq.RequestPanicError: ConnectionDroppedError,
    rq.RequestTimeoutError: RequestTimeoutError,
    rq.ConnectTimeoutError: RequestTimeoutError,
    rq.ReadTimeoutError: RequestTimeoutError,
    rq.WriteTimeoutError: RequestTimeoutError,
    rq.PoolTimeoutError: RequestTimeoutError,
    rq.StatusError: InvalidResponseError,
    rq.RedirectError: InvalidResponseError,
    rq.DecodeError: InvalidResponseError,
    rq.BodyDecodeError: InvalidResponseError,
    rq.JSONDecodeError: InvalidResponseError,
    rq.BuilderError: BadRequestError,
}
"""What each of pyreqwest's errors is to us, unless its causes say more: see `_as_our_error`."""


def _as_our_error(error: Exception, url: str, elapsed_s: float) -> RequestError:
    """
    Return our error for one of pyreqwest's.

    Its classes do not tell the phase: a reset while waiting for the answer is a ConnectError too (pyreqwest 0.15). The
    chain of causes does: hyper names the connect phase and a body cut short.
    """
    causes = _causes(error)
    why = _last_cause(error)
    if any("(Connect)" in cause for cause in causes):
        return ConnectionFailedError(f"No connection to {url}: {why}.")
    if any("reading a body from connection" in cause for cause in causes):
        return ConnectionDroppedError(f"The connection to {url} ended within the answer: {why}.")
    cls = next((ERRORS[base] for base in type(error).__mro__ if base in ERRORS), BadRequestError)
    if cls is RequestTimeoutError:
        return RequestTimeoutError(f"No whole answer from {url} after {elapsed_s:.1f} s.")
    if cls is BadRequestError:
        return BadRequestError(f"The request to {url} cannot be sent: {why}.")
    if cls is InvalidResponseError:
        return InvalidResponseError(f"The answer of {url} cannot be read: {why}.")
    return ConnectionDroppedError(f"The connection to {url} ended before the answer: {why}.")


def _causes(error: Exception) -> list[str]:
    details = error.details if isinstance(error, rq.DetailedPyreqwestError) else None
    return [cause["message"] for cause in (details and details["causes"]) or ()]


def _last_cause(error: Exception) -> str:
    causes = _causes(error)
    if causes:
        return causes[-1]
    return error.message if isinstance(error, rq.PyreqwestError) else str(error)
