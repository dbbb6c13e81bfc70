"""
One server of a pool: its address, its limit, its state, and the requests that are in flight there.

Lives on one event loop. Knows nothing of other servers.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nemo_llm_stage.client.endpoint_status import EndpointMeter, EndpointStatus, percentile_s
from nemo_llm_stage.client.endpoints.address import Endpoint
from nemo_llm_stage.client.endpoints.state import Breaker, EndpointPolicy
from nemo_llm_stage.client.governor.governed import Governed
from nemo_llm_stage.client.limit import Limit

if TYPE_CHECKING:
    from nemo_llm_stage.client.endpoints.pool import EndpointPool
    from nemo_llm_stage.client.endpoints.trail import Trail


class Member:
    """
    One server.

    Args:
        endpoint: Where it is.
        limit: How many requests it gets at once; whoever adapts it calls `Limit.resize`.
        breaker: Its state.

    Attributes:
        is_own: Whether this worker is the one to ask it; otherwise it is a last resort.
        cap: The limit as the settings have it, for this worker; whoever adapts the limit stays below.
        leases: The requests in flight there, oldest first.
        meter: Counts what came of them.
        answered_at_s: Monotonic time of the last answer; that of joining before the first.
        governed: Moves the limit; None where it is fixed.
        seed: Of its hashes.
    """

    __slots__ = (
        "answered_at_s",
        "breaker",
        "cap",
        "endpoint",
        "governed",
        "is_own",
        "leases",
        "limit",
        "meter",
        "seed",
    )

    def __init__(self, endpoint: Endpoint, limit: Limit, breaker: Breaker) -> None:
        self.endpoint = endpoint
        self.limit = limit
        self.breaker = breaker
        self.is_own = True
        self.cap = limit.max_concurrent_requests
        self.leases: dict[Lease, None] = {}
        self.meter = EndpointMeter(endpoint.base_url)
        self.answered_at_s = breaker.since_s
        self.governed: Governed | None = None
        self.seed = zlib.crc32(endpoint.base_url.encode())

    @property
    def has_room(self) -> bool:
        """Whether it may get another request."""
        if self.limit.in_flight >= self.limit.max_concurrent_requests:
            return False
        return self.governed is None or self.governed.is_open

    @property
    def load(self) -> float:
        """Requests in flight, with one more, relative to the limit."""
        return (self.limit.in_flight + 1) / self.limit.max_concurrent_requests

    def silence_s(self, now_s: float) -> float:
        """Return for how long it has owed an answer to a request that may still be recalled, and given none."""
        oldest = next((lease for lease in self.leases if not lease.is_final), None)
        return 0.0 if oldest is None else now_s - max(oldest.started_s, self.answered_at_s)

    def is_silent(self, members: Iterable[Member], policy: EndpointPolicy, now_s: float) -> bool:
        """Whether it has given no answer for much longer than the others take, and they have given some meanwhile."""
        silence_s = self.silence_s(now_s)
        if silence_s < policy.silent_after_s:
            return False
        peers = [peer for peer in members if peer is not self and peer.answered_at_s > now_s - silence_s]
        slowest_s = max((peer.p99_s() or 0.0 for peer in peers), default=None)
        return slowest_s is not None and silence_s > policy.silent_factor * slowest_s

    def recall(self) -> None:
        """Cancel the requests in flight, so that they go to other servers."""
        for lease in list(self.leases):
            lease.recall()

    def recall_ghosts(self, sent_before_s: float) -> int:
        """Cancel the requests that were sent before, so that they are sent again; return how many they are."""
        old = [lease for lease in self.leases if lease.started_s <= sent_before_s]
        return sum([lease.recall("shows none of the open requests, so it has lost this one") for lease in old])

    def p99_s(self) -> float | None:
        """What 99 % of the answers took at most; None before the first."""
        return percentile_s(self.meter.latencies, 0.99)

    def status(self, now_s: float) -> EndpointStatus:
        """Return how it stands at the monotonic time `now_s`."""
        breaker, now = self.breaker, time.time()
        governed = None if self.governed is None else self.governed.status
        return replace(
            self.meter.status(),
            state=breaker.state,
            since=now - (now_s - breaker.since_s),
            limit=self.limit.max_concurrent_requests if self.is_own and breaker.state != "gone" else None,
            mode="fixed" if governed is None else governed.mode,
            reason=breaker.reason or (None if governed is None else governed.reason),
            bottleneck=None if governed is None else governed.bottleneck,
            moved=None if governed is None else governed.moved,
            num_ghosts=0 if self.governed is None else self.governed.num_ghosts,
            held_s={} if governed is None else dict(governed.held_s),
            prompt_speed=None if governed is None else governed.prompt_speed,
            in_flight=self.limit.in_flight,
            next_try_at=now + breaker.next_try_s - now_s if breaker.state in {"suspect", "resting"} else None,
        )


@dataclass(eq=False, slots=True)
class Lease:
    """
    A permit for one send of a request: for a certain server, which is known once it is held.

    Attributes:
        pool: That the server is in.
        trail: Where the request has failed before; where it fails under this permit is added.
        member: The server.
        started_s: Monotonic time.
        is_probe: Whether it finds out if the server is back.
        task: That sends the request; None while nothing is being sent.
        is_recalled: Whether it was cancelled to be sent again.
        why: Why it was.
    """

    pool: EndpointPool
    trail: Trail
    member: Member = field(init=False)
    started_s: float = field(init=False)
    is_probe: bool = field(init=False)
    task: asyncio.Task[Any] | None = None
    is_recalled: bool = False
    why: str = ""

    def __aenter__(self) -> Coroutine[Any, Any, Lease]:
        """Wait for the permit."""
        return self.pool.acquire(self)

    async def __aexit__(self, *exc: object) -> None:
        """Give the permit back."""
        self.pool.release(self)

    @property
    def is_final(self) -> bool:
        """Whether it stays where it is however long that takes: its request has been recalled before."""
        return self.trail.is_final

    def recall(self, why: str = "answers nobody, while other servers do") -> bool:
        """
        Cancel what is being sent, unless that is done; `was_recalled` tells that from being cancelled by anyone else.

        Args:
            why: What the server does, for people.
        """
        if self.is_final or self.is_recalled or self.task is None:
            return False
        self.is_recalled, self.why = True, why
        self.task.cancel()
        return True

    def was_recalled(self) -> bool:
        """Whether the cancellation that the task has just got is this permit's alone; it is taken back then."""
        return self.is_recalled and self.task is not None and self.task.uncancel() == 0


def least_loaded(members: Sequence[Member], turn: int) -> Member | None:
    """Return the member with room and the lowest load, the first one from `turn` on among equals; None for none."""
    best, best_load = None, float("inf")
    start = turn % max(1, len(members))
    for member in (*members[start:], *members[:start]):
        limit = member.limit
        if limit.in_flight < limit.max_concurrent_requests and (member.governed is None or member.governed.is_open):
            load = (limit.in_flight + 1) / limit.max_concurrent_requests
            if load < best_load:
                best, best_load = member, load
    return best
