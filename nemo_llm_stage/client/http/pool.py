"""
The connections of one event loop: which can be used again, and what became of the others.

A server or proxy that sends a response twice must not give a row the answer of another: a connection is closed when
bytes come that no request has asked for, or a response that came on it before. A server that does this repeatedly gets
one connection for each request. Knows nothing of addresses, and of requests only whether two are the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque

from nemo_llm_stage.client.http.connection import Connection, ConnectionState, DropCause
from nemo_llm_stage.client.http.deadlines import Deadlines
from nemo_llm_stage.client.http.transport import TransportStatistics

logger = logging.getLogger(__name__)

MAX_IDLE_S = 4.0
"""Connections idle for longer are not used again: servers close them, uvicorn after 5 s (its default)."""

MAX_UNASKED = 3
"""Connections to one server that may bring unasked bytes before each connection to it is used once."""

_UNASKED = frozenset({DropCause.UNASKED_BYTES, DropCause.REPEATED_RESPONSE})


NUM_ALIKE = 16
"""Different requests in a row, each on a new connection, that a server must answer alike to be taken for one that says
the same to everything, as a test's server does."""


class _Server:
    """
    What is known of one server.

    Attributes:
        idle: Its connections that wait for a request.
        num_unasked: Connections that brought what no request had asked for.
        last_first: Fingerprint of the last answer that was the first on its connection, which is surely no copy.
        askers: Hashes of the different requests that got it, since another came.
        constant: Fingerprint of what it says to everything; None where its answers differ.
    """

    __slots__ = ("askers", "constant", "idle", "last_first", "num_unasked")

    def __init__(self) -> None:
        self.idle: deque[Connection] = deque()
        self.num_unasked = 0
        self.last_first: int | None = None
        self.askers: set[int] = set()
        self.constant: int | None = None

    def note_first(self, fingerprint: int, request: bytes) -> None:
        """Take note of the first answer on a connection."""
        if fingerprint != self.last_first:
            self.last_first, self.constant = fingerprint, None
            self.askers.clear()
        if self.constant is None:
            self.askers.add(hash(request))
            if len(self.askers) >= NUM_ALIKE:
                self.constant, self.num_unasked = fingerprint, 0

    def close_idle(self, cause: DropCause) -> None:
        """Use none of the idle connections again."""
        while self.idle:
            self.idle.pop().close(cause)


class ConnectionPool:
    """
    The open connections of one event loop, by server.

    Nothing here refers to the transport that uses the pool: open connections must not keep it alive.

    Attributes:
        deadlines: Of the requests on the connections.
    """

    def __init__(self) -> None:
        self._servers: dict[str, _Server] = {}
        self._open: set[Connection] = set()
        self._num_connects = 0
        self._drops: Counter[DropCause] = Counter()
        self._num_unasked: Counter[str] = Counter()
        self.deadlines = Deadlines()

    def add(self, connection: Connection) -> None:
        """Take note of a new connection, which is about to be used."""
        if connection.state is not ConnectionState.CLOSED:
            self._open.add(connection)
        self._num_connects += 1
        logger.debug("%r opened.", connection)

    def take(self, server: str, now_s: float) -> Connection | None:
        """
        Return an idle connection to `server`, the one used last: the others grow old and are closed.

        Args:
            server: ``http(s)://host:port``.
            now_s: Loop time.
        """
        known = self._servers.get(server)
        if known is None:
            return None
        idle = known.idle
        if not idle:
            return None
        oldest_s = now_s - MAX_IDLE_S
        while idle and idle[0].idle_since_s < oldest_s:
            idle.popleft().close(DropCause.IDLE_TOO_LONG)
        while idle:
            connection = idle.pop()
            if connection.check_idle():
                return connection
        return None

    def put(self, connection: Connection) -> None:
        """Keep `connection` for the next request, if it can be used again."""
        if connection.state is not ConnectionState.IDLE:
            return
        known = self._known(connection.server)
        if known.num_unasked >= MAX_UNASKED:
            connection.close(DropCause.SINGLE_USE)
        elif connection.is_in_doubt and known.constant is None:
            connection.close(DropCause.IN_DOUBT)
        else:
            known.idle.append(connection)

    def is_repeated(self, connection: Connection, request: bytes | None) -> bool:
        """
        Return whether the last response on `connection` may be one to an earlier request; close it then.

        Answers of models differ, by their ids at least, so one that came on the connection before is a copy, and what
        comes after it is out of step: the answer to the request before. Where a server says the same to everything,
        copies do no harm, but an answer that differs is out of step.

        Args:
            connection: Has just brought a whole response.
            request: The body that was answered. None for a response that can be no answer, such as a refusal, which may
                well be the same twice: it is used, and the connection closed.
        """
        known, fingerprint = self._known(connection.server), connection.fingerprint
        is_answer = request is not None and fingerprint != 0
        if connection.num_exchanges == 1:
            if request is not None and is_answer:
                known.note_first(fingerprint, request)
        elif fingerprint in connection.remembered:
            if not is_answer:
                connection.close(DropCause.IN_DOUBT)
                return False
            if fingerprint != known.constant:
                connection.close(DropCause.REPEATED_RESPONSE)
                return True
            connection.is_in_doubt = True
        elif is_answer and connection.is_in_doubt:
            known.constant = None
            known.close_idle(DropCause.IN_DOUBT)
            connection.close(DropCause.IN_DOUBT)
            return True
        connection.remembered.append(fingerprint)
        return False

    def on_lost(self, connection: Connection) -> None:
        """Take note that `connection` is closed."""
        self._open.discard(connection)
        cause = connection.drop_cause or DropCause.CLOSED_BY_SERVER
        self._drops[cause] += 1
        logger.debug("%r.", connection)
        if cause in _UNASKED:
            self._note_unasked(connection.server)

    def statistics(self) -> TransportStatistics:
        """Return how the connections stand."""
        return TransportStatistics(
            num_open=len(self._open),
            num_idle=sum(connection.state is ConnectionState.IDLE for connection in list(self._open)),
            num_connects=self._num_connects,
            drops={cause.value: count for cause, count in list(self._drops.items())},
            single_use_servers=tuple(
                name for name, known in list(self._servers.items()) if known.num_unasked >= MAX_UNASKED
            ),
            num_unasked=dict(self._num_unasked),
        )

    async def aclose(self) -> None:
        """Close every connection."""
        for connection in list(self._open):
            connection.close(DropCause.CLIENT_CLOSED)
        for known in self._servers.values():
            known.idle.clear()
        self.deadlines.close()
        await asyncio.sleep(0)  # the loop closes the sockets in its next turn

    def _known(self, server: str) -> _Server:
        known = self._servers.get(server)
        if known is None:
            known = self._servers[server] = _Server()
        return known

    def _note_unasked(self, server: str) -> None:
        known = self._known(server)
        known.num_unasked += 1
        self._num_unasked[server] += 1
        if known.num_unasked == 1:
            logger.warning(
                "%s, or a proxy before it, sent bytes that no request had asked for; the connection was closed so that "
                "no row gets the answer of another.",
                server,
            )
        elif known.num_unasked == MAX_UNASKED:
            logger.warning("%s did so %d times; each connection to it is used once from now on.", server, MAX_UNASKED)
            known.close_idle(DropCause.SINGLE_USE)
