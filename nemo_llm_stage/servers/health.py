"""Does a server take requests yet? Knows ``/health`` and ``/v1/models``; sends nothing that costs anything."""

from __future__ import annotations

import http.client
import random
import socket

TIMEOUT_S = 5.0

PORTS = range(15_000, 32_768)
"""Those that a system gives to connections, and to whoever listens on any port, come after: a server may listen minutes
after its port was chosen, and meanwhile another program must not get it."""

NUM_TRIES = 50
ANY = 0
_OK = 200
_NO_SUCH_ROUTE = frozenset({404, 405})


def is_healthy(host: str, port: int, path: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Return whether `path` answers with 200; where there is no such route, whether the list of models does."""
    status = _status_of(host, port, path, timeout_s)
    if status in _NO_SUCH_ROUTE:
        status = _status_of(host, port, "/v1/models", timeout_s)
    return status == _OK


def _status_of(host: str, port: int, path: str, timeout_s: float) -> int | None:
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def free_port(wanted: int | None = None) -> int | None:
    """Return a port that nobody listens on now, or `wanted` if that is free; None if it is not."""
    chosen = [wanted] if wanted else [*random.sample(PORTS, NUM_TRIES), ANY]
    return next(filter(None, map(_bound, chosen)), None)


def _bound(port: int) -> int | None:
    """Return the port, once it was bound; None if it is not free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return None
        bound: int = probe.getsockname()[1]
        return bound
