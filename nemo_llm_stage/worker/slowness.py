"""
Which servers are slow beyond their peers, and after how long a request there is worth a second one elsewhere.

Pure. Knows how servers stand; knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from nemo_llm_stage.client.endpoint_status import EndpointStatus

MIN_ANSWERS = 5
"""Answers before a server's latency says something."""

SLOW_FACTOR = 2.0
"""A server whose median latency is so many times that of its peers is slow. Source: the usual 1.5 times of Spark's
speculation was too eager, also for Spark, which has 3 since 4.0; lengths of answers vary by more than that."""

LONG_FACTOR = 3.0
"""A request that takes so many times what 99 % of the peers' answers take at most is stuck, whatever its server did."""

_FEW = 8


class Slowness:
    """
    Which servers are slow, as of the last look.

    Attributes:
        overdue_s: Base URL → seconds after which a request in flight there is overdue; of servers where any may be.
    """

    def __init__(self) -> None:
        self.overdue_s: dict[str, float] = {}
        self._slow: set[str] = set()

    def look(self, endpoints: Sequence[EndpointStatus]) -> None:
        """See anew how the servers of all workers stand."""
        self.overdue_s, self._slow = {}, set()
        for group in {endpoint.group for endpoint in endpoints}:
            self._look([endpoint for endpoint in endpoints if endpoint.group == group])

    def _look(self, endpoints: Sequence[EndpointStatus]) -> None:
        """See how servers stand that are asked for the same."""
        known = [_Latency.of(endpoint) for endpoint in endpoints if endpoint.num_answered >= MIN_ANSWERS]
        of_all = _Latency.of_peers(known) if len(known) > _FEW else None  # one more or less changes nothing
        for endpoint in endpoints:
            peers = of_all or _Latency.of_peers([peer for peer in known if peer.url != endpoint.url])
            if peers is None or not endpoint.in_flight:
                continue
            if endpoint.num_answered < MIN_ANSWERS or (endpoint.p50_s or 0.0) < SLOW_FACTOR * peers.p50_s:
                self.overdue_s[endpoint.url] = LONG_FACTOR * peers.p99_s
            else:
                self.overdue_s[endpoint.url] = peers.p50_s
                self._slow.add(endpoint.url)

    def has_quick(self, endpoints: Sequence[EndpointStatus]) -> bool:
        """Whether a worker with these servers has one that is not slow, in each group; also where none are known."""
        quick = {one.group for one in endpoints if not one.is_down and one.url not in self._slow}
        return quick == {one.group for one in endpoints}


@dataclass(frozen=True, slots=True)
class _Latency:
    """How long a server takes, or what is usual among several."""

    url: str
    p50_s: float
    p99_s: float

    @classmethod
    def of(cls, endpoint: EndpointStatus) -> _Latency:
        return cls(endpoint.url, endpoint.p50_s or 0.0, endpoint.p99_s or 0.0)

    @classmethod
    def of_peers(cls, peers: Sequence[_Latency]) -> _Latency | None:
        if not peers:
            return None
        return cls("", median(peer.p50_s for peer in peers), median(peer.p99_s for peer in peers))
