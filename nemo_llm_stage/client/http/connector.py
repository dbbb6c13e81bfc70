"""
From a route to an open connection: name lookup, proxy, TLS.

Every failure is a `ConnectionFailedError` that says why. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl

from nemo_llm_stage.client.http.connection import Connection
from nemo_llm_stage.client.http.dial import dial
from nemo_llm_stage.client.http.dial_turns import DialTurns, Starts
from nemo_llm_stage.client.http.pool import ConnectionPool
from nemo_llm_stage.client.http.route import Route
from nemo_llm_stage.client.http.tls import tls_context
from nemo_llm_stage.client.http.transport import TransportConfig
from nemo_llm_stage.client.http.tunnel import open_tunnel
from nemo_llm_stage.client.http.turns import Turns
from nemo_llm_stage.errors import ConnectionFailedError


class Connector:
    """
    Opens connections. TLS is verified.

    Args:
        pool: Told of each connection that is opened and closed.
        config: The certificates' files are read with the first TLS connection.
    """

    def __init__(self, pool: ConnectionPool, config: TransportConfig) -> None:
        self._pool = pool
        self._config = config
        self._turns = Turns()
        self._starts = Starts()
        self._dials: dict[str, DialTurns] = {}
        self._tls: ssl.SSLContext | None = None

    async def connect(self, route: Route, timeout_s: float) -> Connection:
        """
        Return a new connection on `route`.

        Raises:
            ConnectionFailedError: There is none within `timeout_s`, or the certificate is not trusted.
            ConfigError: A file of certificates cannot be used.
        """
        turns = self._dials.setdefault(route.server, DialTurns(self._starts))
        try:
            async with turns.turn(timeout_s), asyncio.timeout(timeout_s):
                connection = await self._open(route)
        except TimeoutError:
            raise ConnectionFailedError(f"No connection to {route.shown_url} within {timeout_s:g} s.") from None
        except OSError as error:
            raise ConnectionFailedError(f"No connection to {route.shown_url}: {_reason(error)}.") from error
        self._pool.add(connection)
        return connection

    async def _open(self, route: Route) -> Connection:
        if route.is_tls and self._tls is None:
            config = self._config
            self._tls = tls_context(config.ca_file, config.cert_file, config.key_file)
            self._tls.set_alpn_protocols(["http/1.1"])
        tls = self._tls if route.is_tls else None
        if route.proxy is None:
            connected = await dial(route.host, route.port)
        elif tls is None:
            connected = await dial(route.proxy.host, route.proxy.port)
        else:
            connected = await open_tunnel(route)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(route.server, self._turns, self._pool.deadlines, self._pool.on_lost),
                sock=connected,
                ssl=tls,
                server_hostname=route.host if tls is not None else None,
            )
        except BaseException:
            connected.close()
            raise
        return connection


def _reason(error: OSError) -> str:
    """Return the operating system's words for `error`, without Python's numbers around them."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}); ca_file names further ones to trust"
    if isinstance(error, socket.gaierror) and error.strerror:
        return error.strerror
    if error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
