"""Does a server take requests yet? Knows ``/health`` and ``/v1/models``; sends nothing that costs anything."""

from __future__ import annotations

import http.client
import socket

TIMEOUT_S = 5.0
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
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", wanted or 0))
        except OSError:
            return None
        port: int = probe.getsockname()[1]
        return port
