"""
Which servers are slow beyond their peers, and after how long a request there is worth a second one elsewhere.

Pure. Knows how servers stand; knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        known = [endpoint for endpoint in endpoints if endpoint.num_answered >= MIN_ANSWERS]
        for endpoint in endpoints:
            peers = [peer for peer in known if peer is not endpoint] if len(known) <= _FEW else known
            if not peers or not endpoint.in_flight:
                continue
            usual_s = median(peer.p50_s or 0.0 for peer in peers)
            if endpoint.num_answered < MIN_ANSWERS or (endpoint.p50_s or 0.0) < SLOW_FACTOR * usual_s:
                self.overdue_s[endpoint.url] = LONG_FACTOR * median(peer.p99_s or 0.0 for peer in peers)
            else:
                self.overdue_s[endpoint.url] = usual_s
                self._slow.add(endpoint.url)

    def has_quick(self, endpoints: Sequence[EndpointStatus]) -> bool:
        """Whether a worker with these servers has one that is not slow; also where they are not known."""
        return not endpoints or any(not one.is_down and one.url not in self._slow for one in endpoints)
