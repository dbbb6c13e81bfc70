"""
What `AsyncHTTPClient.setup` opens: it lives in one process and is not pickled.

Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from http import HTTPStatus

from nemo_llm_stage.client.credentials import Credentials, Sent
from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.client.endpoints.address import Endpoint
from nemo_llm_stage.client.http.route import find_route
from nemo_llm_stage.client.http.transport import HTTPResponse, Transport, TransportStatistics
from nemo_llm_stage.client.limit import LoopLocal
from nemo_llm_stage.client.server_check import CHECK_TIMEOUT_S, GREETING, ONE_TOKEN, ServerCheck
from nemo_llm_stage.client.token_limit import TokenLimitNames
from nemo_llm_stage.client.wire import encode_request
from nemo_llm_stage.errors import RequestError


class HTTPSession:
    """
    The values that a client sends, as read in this process, and its connections.

    Args:
        credentials: Key, headers and query.
        make_transport: Called once on each event loop.

    Attributes:
        sent: The values as read last.
        token_limit: What each model calls ``max_tokens``.
        has_usual_timeout: Whether the client's timeout is the default, which gives way where a server is slow.
    """

    def __init__(
        self,
        credentials: Credentials,
        make_transport: Callable[[Sent], Transport],
        has_usual_timeout: bool = False,
    ) -> None:
        self.sent = credentials.read()
        self.has_usual_timeout = has_usual_timeout
        self._credentials = credentials
        self.token_limit = TokenLimitNames()
        self._transports: LoopLocal[Transport] = LoopLocal(lambda: make_transport(self.sent))
        self._make_transport = make_transport
        self._retired: list[LoopLocal[Transport]] = []
        self._closed = TransportStatistics()

    @property
    def transport(self) -> Transport:
        """The running event loop's."""
        return self._transports.get()

    def renew(self, error: RequestError, used: Sent) -> bool:
        """
        Read the values again if the server does not accept the key: its file may hold a new one.

        Connections with the old key serve the requests that are in flight on them and are closed with the session.

        Args:
            error: Of the failed request.
            used: The values that the request was sent with.

        Returns:
            Whether there is a new key, so that the request should be sent again.
        """
        if error.status != HTTPStatus.UNAUTHORIZED:
            return False
        if self.sent is used:
            sent = self._credentials.read_again(used.key)
            if sent is None:
                return False
            self.sent = sent
            self._retired.append(self._transports)
            self._transports = LoopLocal(lambda: self._make_transport(sent))
        return self.sent.key != used.key

    def check_of(self, endpoint: Endpoint, model: str) -> ServerCheck:
        """Return the check of the server at `endpoint`."""
        sent, transport = self.sent, self.transport
        request = encode_request([GREETING], model, ONE_TOKEN)

        def ask(path: str, body: bytes | None) -> Awaitable[HTTPResponse]:
            return transport.send(sent.add_query(endpoint.url(path)), body, timeout_s=CHECK_TIMEOUT_S)

        return ServerCheck(
            endpoint,
            model,
            list_models=lambda: ask("models", None),
            ask_for_one_token=lambda: ask(request.path, request.body),
            secrets=sent.secrets,
            has_key=sent.has_key,
        )

    def statistics(self) -> TransportStatistics:
        """Return how the connections of all event loops stand, closed ones included. From any thread."""
        all_of_them = [*self._retired, self._transports]
        parts = [transport.statistics() for transports in all_of_them for transport in transports.values()]
        return TransportStatistics.sum_of([self._closed, *parts])

    def with_unasked(self, statuses: tuple[EndpointStatus, ...]) -> tuple[EndpointStatus, ...]:
        """Return `statuses` with the connections that were closed because a server sent what nobody had asked for."""
        num_unasked = self.statistics().num_unasked
        if not num_unasked:
            return statuses
        servers = [find_route(status.url, None).server for status in statuses]
        return tuple(
            replace(status, num_unasked=num_unasked.get(server, 0))
            for status, server in zip(statuses, servers, strict=True)
        )

    async def aclose(self) -> None:
        """Close the running event loop's connections."""
        for transports in (*self._retired, self._transports):
            transport = transports.pop()
            if transport is not None:
                await transport.aclose()
                self._closed = TransportStatistics.sum_of([self._closed, transport.statistics()])
