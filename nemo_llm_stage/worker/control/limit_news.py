"""
What is worth telling of limits that move by themselves: where they went, and why. Pure.

Knows how servers stand; knows nothing of who reads about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nemo_llm_stage.client.endpoint_status import EndpointStatus

MUCH = 1.25
"""A limit that has moved by this factor is reported."""

MIN_PAUSE_S = 10.0
"""Seconds between two reports about one server; the start may be reported at once."""

MAX_SERVERS = 8
"""With more servers nothing is reported: it would push everything else out of a run's events."""


@dataclass(frozen=True, slots=True)
class _Told:
    limit: int
    mode: str
    at_s: float


class LimitNews:
    """Compares limits with what was told of them before."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}

    def of(self, endpoints: Iterable[EndpointStatus], now_s: float) -> list[str]:
        """
        Return a sentence for each limit that has moved much.

        Args:
            endpoints: The servers.
            now_s: Seconds that never go back.
        """
        known = list(endpoints)
        if len(known) > MAX_SERVERS:
            return []
        return [text for endpoint in known if (text := self._of_one(endpoint, now_s))]

    def _of_one(self, endpoint: EndpointStatus, now_s: float) -> str:
        told = self._told.get(endpoint.url)
        if endpoint.limit is None or (endpoint.mode == "fixed" and told is None):
            return ""
        if told is None:
            self._told[endpoint.url] = _Told(endpoint.limit, endpoint.mode, now_s - MIN_PAUSE_S)
            return ""
        is_much = not 1 / MUCH < endpoint.limit / max(1, told.limit) < MUCH
        if not (is_much or endpoint.mode != told.mode) or now_s - told.at_s < MIN_PAUSE_S:
            return ""
        self._told[endpoint.url] = _Told(endpoint.limit, endpoint.mode, now_s)
        return (
            f"{endpoint.url}: {endpoint.limit:,} requests in flight at most, after {told.limit:,} ({endpoint.mode}): "
            f"{endpoint.moved or 'a number was set'}"
        )
