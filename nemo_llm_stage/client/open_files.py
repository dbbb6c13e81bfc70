"""
The limit of open files: each request in flight is a connection, and each connection an open file.

A process may raise its soft limit up to the hard one, which only the system's administrator raises.
"""

from __future__ import annotations

import math
from contextlib import suppress

OTHER_FILES = 256
"""Beside connections: inputs, outputs, journals, libraries."""

MOST = 1 << 20
"""More are never asked for: some programs walk through all that there may be."""


def open_file_limits() -> tuple[float, float]:
    """Return the soft and the hard limit of this process; infinite where there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf, math.inf
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _number(soft, resource.RLIM_INFINITY), _number(hard, resource.RLIM_INFINITY)


def raise_open_file_limit() -> None:
    """Raise the soft limit of this process as far as it may. Safe to call again."""
    soft, hard = open_file_limits()
    wanted = min(hard, MOST)
    if soft < wanted:
        import resource

        _, hard_as_set = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # macOS may have a lower one than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(wanted), hard_as_set))


def lack_of_files(num_requests: int) -> str | None:
    """
    Return why this process cannot have so many requests in flight; None where it can.

    Raises the soft limit first.
    """
    raise_open_file_limit()
    soft, hard = open_file_limits()
    if soft >= num_requests + OTHER_FILES:
        return None
    return (
        f"{num_requests:,} requests in flight in one process need {num_requests + OTHER_FILES:,} open files, and the "
        f"hard limit is {hard:,.0f} (`ulimit -Hn`): lower max_concurrent_requests, use more actors, or have the limit "
        "raised (limits.conf, or the container's ulimits; on a cluster before `ray start`)."
    )


def _number(limit: int, infinity: int) -> float:
    return math.inf if limit == infinity else limit
