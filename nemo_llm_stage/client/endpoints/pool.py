"""
Which server gets the next request: the least loaded healthy one, with a limit for each.

The pool is the client's limit: a permit is one for a certain server. Servers that fail or are silent rest, and their
requests go to others. Lives on one event loop. Knows nothing of what is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from nemo_llm_stage.client.clock import Clock
from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.client.endpoints.address import Endpoint
from nemo_llm_stage.client.endpoints.affinity import AFFINITY, Homes
from nemo_llm_stage.client.endpoints.line import WaitingLine
from nemo_llm_stage.client.endpoints.member import Lease, Member, least_loaded
from nemo_llm_stage.client.endpoints.members import Members
from nemo_llm_stage.client.endpoints.share import ALONE, WorkerPlace
from nemo_llm_stage.client.endpoints.source import Source
from nemo_llm_stage.client.endpoints.state import EndpointPolicy
from nemo_llm_stage.client.endpoints.trail import AVOIDED, NOWHERE, Trail, choices, is_blameless, is_fault
from nemo_llm_stage.client.governor.governed import Governed
from nemo_llm_stage.client.limit import Limit, Permit
from nemo_llm_stage.errors import ConnectionFailedError, RequestError, TransientError


class EndpointPool(Limit):
    """
    The servers of one client as its limit: ``async with pool.permit():`` waits for a permit of one of them.

    Where no server is healthy all of them are asked, as if there were no states; where there is none at all, requests
    wait until one joins.

    Args:
        source: Where the addresses come from.
        endpoints: As they are now. One named twice gets twice the limit.
        max_per_endpoint: Most requests in flight at each, over all workers.
        clock: Time.
        policy: When a server rests.
        worker: Which of several workers this is.
        govern: Returns what moves the limit of the server at a base URL; None where the limits are fixed.

    Attributes:
        source: Likewise.
        on_close: Called by `close`; None for nothing.
        on_tick: Called about every `policy.tick_s` while requests are in flight or wait; None for nothing.
    """

    def __init__(
        self,
        source: Source,
        endpoints: Iterable[Endpoint],
        max_per_endpoint: int,
        clock: Clock,
        policy: EndpointPolicy,
        *,
        worker: WorkerPlace = ALONE,
        govern: Callable[[str, Limit], Governed] | None = None,
    ) -> None:
        super().__init__(max_per_endpoint)
        self._now_s = clock.monotonic
        self._policy = policy
        self.source = source
        self._homes = Homes()
        self._line = WaitingLine(self._homes)
        self._waiters = self._line.waiters
        self._turn = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_governed = govern is not None
        place = ALONE if source.is_own else worker
        self._members = Members(max_per_endpoint, self._now_s, policy, place, govern, self._refresh)
        self.on_tick: Callable[[], None] | None = None
        self.on_close: Callable[[], None] | None = None
        self.update(endpoints)

    @property
    def members(self) -> tuple[Member, ...]:
        """The servers to ask, in order."""
        return self._members.all

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a permit."""
        return len(self._waiters)

    @property
    def can_recall(self) -> bool:
        """Whether a request can be sent again when its server is silent while others answer, or has lost it."""
        return len(self._members.all) > 1 or self._is_governed

    @property
    def num_ahead(self) -> int:
        """Likewise; more where requests have homes, so that there is one for each server."""
        return self.max_concurrent_requests if self._homes.are_used else super().num_ahead

    def drop_waiting(self) -> None:
        """Cancel the wait of everybody who waits for a permit."""
        self._line.cancel()

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Ask these servers from now on. Those that are gone get no more requests; those in flight there may end."""
        self._members.update(endpoints)
        self._refresh()

    def resize(self, max_concurrent_requests: int) -> None:
        """Change the limit of each server, and fix it where it adapts."""
        self._members.resize(self.checked(max_concurrent_requests))
        self._refresh()

    def permit(self, after: Permit | None = None) -> Lease:
        """Return what to enter for a permit; see `Limit.permit`."""
        if after is not None:
            assert isinstance(after, Lease)
            return Lease(self, after.trail)
        avoided = AVOIDED.get() if len(self._members.all) > 1 else None
        if avoided is None:
            return Lease(self, NOWHERE)
        return Lease(self, Trail(tuple(member for member in self._members.all if member.endpoint.base_url == avoided)))

    async def acquire(self, lease: Lease) -> Lease:
        """Wait until `lease` is a permit of some server."""
        tried = lease.trail.tried
        affinity = AFFINITY.get() if len(self._members.usable) > 1 else None
        member = None
        if not self._waiters and self._may_send():
            member = self._pick(tried, affinity)
        if member is None:
            member = await self._wait(tried, affinity)
        else:
            self._occupy(member)
        lease.member, lease.started_s, lease.is_probe = member, self._now_s(), member.breaker.is_probing
        member.leases[lease] = None
        if self._timer is None and (self.on_tick is not None or len(self._members.all) > 1):
            self._plan_tick()
        return lease

    def release(self, lease: Lease) -> None:
        """Take the permit back: it goes to a request that waits at once."""
        member = lease.member
        del member.leases[lease]
        if lease.is_probe:
            member.breaker.end_probe(self._now_s())
        self._vacate(member)
        if self.on_release is not None:
            self.on_release()

    def note_answer(self, lease: Lease, latency_s: float) -> None:
        """Take note of an answer."""
        member = lease.member
        member.answered_at_s = lease.started_s + latency_s
        member.meter.note_answer(latency_s)
        self._note_alive(member)

    def note_failure(self, lease: Lease, error: RequestError) -> None:
        """
        Take note of a failed send, and mark an error that is the server's: another one takes the request at once.

        So often only as there are servers where this request has not failed yet. A timeout is the server's if it has
        answered nobody else meanwhile.
        """
        member = lease.member
        member.meter.note_failure(error)
        if not isinstance(error, TransientError):
            self._note_alive(member)
            return
        if is_fault(error) and not lease.is_recalled:  # else its silence has been noted
            now_s = self._now_s()
            member.breaker.note_fault(now_s, f"{error.kind}: {error}", is_probe=lease.is_probe)
            self._refresh()
        elif error.status is not None:
            self._note_alive(member)
        tried = (*lease.trail.tried, member)
        others = [other for other in choices(tried, self._members.usable) if other not in tried]
        goes_on = others or (isinstance(error, ConnectionFailedError) and self._members.has_last_resort(member))
        error.goes_elsewhere = bool(goes_on) and is_blameless(error, lease)
        error.server = member.breaker if len(self._members.all) > 1 else None
        lease.trail = lease.trail.after(lease, others)

    def statuses(self) -> tuple[EndpointStatus, ...]:
        """Return how each server stands, also those that have left. May be called from any thread."""
        return self._members.statuses()

    def look(self) -> None:
        """Look for servers that are silent while their peers answer, and let in the requests that are due as probes."""
        if self._members.recall_from_silent():
            self._refresh()
        elif self._members.sick and self._has_room():
            self._let_in()

    def close(self) -> None:
        """Stop looking after the servers until the next request, if this pool is of the running event loop."""
        if self.on_close is not None:
            self.on_close()
        if self._timer is not None and self._loop is asyncio.get_running_loop():
            self._timer.cancel()
            self._timer = None

    def _note_alive(self, member: Member) -> None:
        breaker = member.breaker
        if breaker.state == "healthy":
            breaker.num_faults = 0
        else:
            breaker.note_answer(self._now_s())
            self._refresh()

    def _refresh(self) -> None:
        """See anew which servers get requests and how many, and let in who may enter now."""
        self._members.sort()
        self._count()
        if self._has_room():
            self._let_in()
        if self.on_release is not None:
            self.on_release()

    def _count(self) -> None:
        """Requests at servers that get no more count as part of the cap, so that the rest of it is what is free."""
        usable = self._members.usable
        cap = sum(member.limit.max_concurrent_requests for member in usable)
        self.max_concurrent_requests = cap + self.in_flight - sum(member.limit.in_flight for member in usable)

    def _pick(self, tried: Sequence[Member], affinity: int | None) -> Member | None:
        """Return a server with a free permit: one that is due for a probe, else the home, else the least loaded."""
        if self._members.sick:
            now_s = self._now_s()
            for member in self._members.sick:
                if member not in tried and member.breaker.is_due(now_s):
                    return member
        usable = choices(tried, self._members.usable) if tried else self._members.usable
        if len(usable) == 1:
            member, limit = usable[0], usable[0].limit
            has_permit = limit.in_flight < limit.max_concurrent_requests
            return member if has_permit and (member.governed is None or member.governed.is_open) else None
        if affinity is not None:
            return self._homes.pick(affinity, usable)
        self._turn += 1
        return least_loaded(usable, self._turn - 1)

    def _occupy(self, member: Member) -> None:
        member.limit.in_flight += 1
        self.in_flight += 1
        if self.allowance is not None:
            self.allowance.note_sends()
        if self._members.sick and not member.breaker.is_usable:
            member.breaker.begin_probe()

    def _vacate(self, member: Member) -> None:
        member.limit.in_flight -= 1
        self.in_flight -= 1
        if member not in self._members.usable:
            self._count()
        if self._waiters:
            self._let_in()

    async def _wait(self, tried: Sequence[Member], affinity: int | None) -> Member:
        waiter = self._line.add(tried, affinity)
        if self._timer is None:
            self._plan_tick()
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.cancelled():
                self._line.discard(waiter)
            else:  # the permit came in the same tick
                self.note_unsent()
                waiter.turn.result().breaker.end_probe(self._now_s())
                self._vacate(waiter.turn.result())
            raise

    def _let_in(self) -> None:
        while self._waiters and self._may_send():
            next_one = self._line.take(self._pick, self._members.usable)
            if next_one is None:
                return
            waiter, member = next_one
            if not waiter.turn.done():
                self._occupy(member)
                waiter.turn.set_result(member)

    def _has_room(self) -> bool:
        """Whether some server takes a request now."""
        if any(member.has_room for member in self._members.usable):
            return True
        now_s = self._now_s()
        return any(member.breaker.is_due(now_s) for member in self._members.sick)

    def _plan_tick(self) -> None:
        if len(self._members.all) > 1 or self.on_tick is not None:
            self._loop = asyncio.get_running_loop()
            self._timer = self._loop.call_later(self._policy.tick_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.look()
        if self.on_tick is not None:
            self.on_tick()
        if self.in_flight or self._waiters:
            self._plan_tick()
