"""
The servers of one client: who has joined, how large each one's limit is, and which of them get requests.

Lives on one event loop. Knows servers; knows nothing of permits that wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.client.endpoints.address import Endpoint
from nemo_llm_stage.client.endpoints.member import Member
from nemo_llm_stage.client.endpoints.share import Share, WorkerPlace, shares_of
from nemo_llm_stage.client.endpoints.state import Breaker, EndpointPolicy
from nemo_llm_stage.client.governor.governed import Governed
from nemo_llm_stage.client.limit import Limit

MAX_GONE = 256
"""Servers that have left and are still told of."""


class Members:
    """
    The servers.

    Args:
        max_per_endpoint: Most requests in flight at each, over all workers.
        now_s: Returns monotonic seconds.
        policy: When a server rests.
        worker: Which of several workers this is.
        govern: Returns what moves the limit of the server at a base URL; None where the limits are fixed.
        on_resize: Called when someone has resized a server's limit.

    Attributes:
        all: The servers to ask, in order.
        usable: Those that get requests now.
        sick: Those that get none but probes.
    """

    def __init__(
        self,
        max_per_endpoint: int,
        now_s: Callable[[], float],
        policy: EndpointPolicy,
        worker: WorkerPlace,
        govern: Callable[[str, Limit], Governed] | None,
        on_resize: Callable[[], None],
    ) -> None:
        self._max_per_endpoint = max_per_endpoint
        self._now_s = now_s
        self._policy = policy
        self._worker = worker
        self._govern = govern
        self._on_resize = on_resize
        self._known: dict[str, Member] = {}
        self.all: tuple[Member, ...] = ()
        self.usable: list[Member] = []
        self.sick: list[Member] = []

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Have these servers from now on; one named twice gets twice the limit."""
        named = list(endpoints)
        now_s = self._now_s()
        counts = {endpoint: named.count(endpoint) for endpoint in dict.fromkeys(named)}
        for member in self.all:
            if member.endpoint not in counts:
                member.breaker.leave(now_s)
        self.all = tuple(self._join(endpoint, now_s) for endpoint in counts)
        shares = shares_of((endpoint.base_url for endpoint in counts), self._worker)
        for member in self.all:
            self._set_limit(member, shares.get(member.endpoint.base_url), counts[member.endpoint])
        gone = [url for url, member in self._known.items() if member not in self.all and not member.leases]
        for url in gone[:-MAX_GONE]:
            del self._known[url]

    def resize(self, max_per_endpoint: int) -> None:
        """Change the limit of each server, and fix it where it adapts."""
        self._max_per_endpoint = max_per_endpoint
        for member in self.all:
            if member.governed is not None:
                member.governed.pin(max_per_endpoint)
        self.update([member.endpoint for member in self.all])

    def sort(self) -> None:
        """See anew which servers get requests."""
        own = [member for member in self.all if member.is_own]
        usable = [member for member in own if member.breaker.is_usable]
        usable = usable or [member for member in self.all if member.breaker.is_usable]
        self.sick = [member for member in own if not member.breaker.is_usable] if usable else []
        self.usable = usable or own or list(self.all)

    def has_last_resort(self, member: Member) -> bool:
        """Whether another worker's server is well, which gets requests once `member`, an own one, counts as down."""
        return member.is_own and any(other.breaker.is_usable for other in self.all if not other.is_own)

    def recall_from_silent(self) -> bool:
        """Take the requests from servers that are silent while their peers answer; return whether there are any."""
        now_s = self._now_s()
        silent = [member for member in self.all if member.is_silent(self.all, self._policy, now_s)]
        for member in silent:
            silence_s = member.silence_s(now_s)
            member.breaker.note_silence(now_s, f"no answer for {silence_s:.0f} s, while other servers answer")
            member.recall()
        return bool(silent)

    def statuses(self) -> tuple[EndpointStatus, ...]:
        """Return how each server stands, also those that have left. May be called from any thread."""
        now_s = self._now_s()
        members = list(self._known.values())
        return tuple(member.status(now_s) for member in members if member.is_own or member.meter.num_sends)

    def _join(self, endpoint: Endpoint, now_s: float) -> Member:
        member = self._known.get(endpoint.base_url)
        if member is None:
            member = Member(endpoint, Limit(self._max_per_endpoint), Breaker(self._policy, now_s))
            member.limit.on_release = self._on_resize
            self._known[endpoint.base_url] = member
        member.breaker.rejoin(now_s)
        return member

    def _last_resort(self) -> int:
        """Most requests at another worker's server: one, since they come on top of its limit, unless limits adapt."""
        return 1 if self._govern is None else Share(0, self._worker.count).of(self._max_per_endpoint)

    def _set_limit(self, member: Member, share: Share | None, count: int) -> None:
        member.is_own = share is not None
        limit = self._last_resort() if share is None else share.of(self._max_per_endpoint * count)
        if member.cap != limit:
            member.cap = limit
            if member.governed is None:
                member.limit.max_concurrent_requests = limit
        if self._govern is not None and member.governed is None:
            member.governed = self._govern(member.endpoint.base_url, member.limit)
            member.governed.on_ghosts, member.governed.slowest_s = member.recall_ghosts, member.p99_s
