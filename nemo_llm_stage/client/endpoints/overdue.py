"""
Requests in flight that take long.

Knows permits and servers; knows nothing of rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nemo_llm_stage.client.endpoints.pool import EndpointPool


class Overdue(NamedTuple):
    """
    One request in flight.

    Attributes:
        task: That sends it.
        url: The server's base URL.
        age_s: Seconds since it was sent.
    """

    task: asyncio.Task[Any]
    url: str
    age_s: float


def overdue_in(pools: Iterable[EndpointPool], after_s: Mapping[str, float], now_s: float) -> list[Overdue]:
    """Return the requests that are in flight for longer than `after_s` says for their server's base URL."""
    return [
        Overdue(lease.task, url, now_s - lease.started_s)
        for pool in pools
        for member in pool.members
        if (url := member.endpoint.base_url) in after_s
        for lease in member.leases
        if lease.task is not None and now_s - lease.started_s > after_s[url]
    ]
