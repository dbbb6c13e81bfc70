"""
What `AsyncHTTPClient.setup` opens: it lives in one process and is not pickled.

Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable

from nemo_llm_stage.client.credentials import Sent
from nemo_llm_stage.client.http.transport import Transport, TransportStatistics
from nemo_llm_stage.client.limit import LoopLocal
from nemo_llm_stage.client.token_limit import TokenLimitNames


class HTTPSession:
    """
    The values that a client sends, as read in this process, and its connections.

    Args:
        sent: Key, headers and query.
        make_transport: Called once on each event loop.

    Attributes:
        token_limit: What each model calls ``max_tokens``.
    """

    def __init__(self, sent: Sent, make_transport: Callable[[Sent], Transport]) -> None:
        self.sent = sent
        self.token_limit = TokenLimitNames()
        self._transports: LoopLocal[Transport] = LoopLocal(lambda: make_transport(sent))
        self._closed = TransportStatistics()

    @property
    def transport(self) -> Transport:
        """The running event loop's."""
        return self._transports.get()

    def statistics(self) -> TransportStatistics:
        """Return how the connections of all event loops stand, closed ones included. From any thread."""
        parts = [transport.statistics() for transport in self._transports.values()]
        return TransportStatistics.sum_of([self._closed, *parts])

    async def aclose(self) -> None:
        """Close the running event loop's connections."""
        transport = self._transports.pop()
        if transport is not None:
            await transport.aclose()
            self._closed = TransportStatistics.sum_of([self._closed, transport.statistics()])
