"""
The health of one server: a state machine that learns outcomes and says whether the server gets requests.

Pure: the time is an argument. Knows nothing of requests, limits or other servers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from nemo_llm_stage.client.endpoint_status import EndpointState


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """
    When a server is left alone, and for how long.

    Attributes:
        num_faults: Faults of the server in a row before it rests.
        first_rest_s: Seconds of the first rest; each further one is twice as long.
        max_rest_s: The longest rest. A server that was healthy for so long begins with the first rest again.
        silent_after_s: A server that has answered nothing for so long, while its peers answer, is suspect …
        silent_factor: … if that is also so many times what 99 % of its peers' answers take at most.
        tick_s: Seconds between two looks at all servers.
        poll_s: Seconds between two reads of addresses that may change; None for what suits where they come from.

    Source: consecutive failures, growing ejection times and use of all servers where none is healthy are Envoy's
    outlier detection and panic mode.
    """

    num_faults: int = 3
    first_rest_s: float = 5.0
    max_rest_s: float = 60.0
    silent_after_s: float = 30.0
    silent_factor: float = 5.0
    tick_s: float = 1.0
    poll_s: float | None = None


class Breaker:
    """
    The state of one server.

    ``starting`` has not answered yet and ``healthy`` has: both get requests. After `num_faults` faults in a row a
    server is ``resting``: it gets none until its rest is over, and then one, the probe. A server that is silent while
    its peers answer is ``suspect``, likewise. An answer makes it healthy; a probe that fails begins a longer rest. A
    server that has left is ``gone``.

    Args:
        policy: When, and for how long.
        now_s: Monotonic time.
        jitter: Returns a number from 0 to 1.

    Attributes:
        state: Likewise.
        since_s: Monotonic time at which the state began.
        reason: Why it gets no requests; None where it does.
        next_try_s: Monotonic time of the next probe, while it gets no requests.
        is_probing: Whether a probe is in flight.
        num_faults: Faults in a row.
        num_outages: Times that it stopped getting requests.
    """

    __slots__ = (
        "_jitter",
        "_num_rests",
        "_policy",
        "is_probing",
        "next_try_s",
        "num_faults",
        "num_outages",
        "reason",
        "since_s",
        "state",
    )

    def __init__(self, policy: EndpointPolicy, now_s: float, jitter: Callable[[], float] = random.random) -> None:
        self._policy = policy
        self._jitter = jitter
        self._num_rests = 0
        self.state: EndpointState = "starting"
        self.since_s = now_s
        self.reason: str | None = None
        self.next_try_s = 0.0
        self.is_probing = False
        self.num_faults = 0
        self.num_outages = 0

    @property
    def is_usable(self) -> bool:
        """Whether it gets requests like any other."""
        return self.state in {"starting", "healthy"}

    @property
    def is_down(self) -> bool:
        """Whether it gets no requests because it fails or is silent."""
        return self.state in {"suspect", "resting"}

    def is_due(self, now_s: float) -> bool:
        """Whether it should get a probe now."""
        return self.is_down and not self.is_probing and now_s >= self.next_try_s

    def begin_probe(self) -> None:
        """Take note that the probe is sent."""
        self.is_probing = True

    def end_probe(self, now_s: float) -> None:
        """Take note that the probe has ended. If it told nothing, e.g. because it was cancelled, another may follow."""
        if self.is_probing:
            self.is_probing = False
            self.next_try_s = max(now_s, self.next_try_s)

    def note_answer(self, now_s: float) -> None:
        """Take note of an answer, also one that refuses the request: the server is up."""
        self.num_faults = 0
        if self.state not in {"healthy", "gone"}:
            self._enter("healthy", now_s, None)

    def note_fault(self, now_s: float, reason: str, *, is_probe: bool = False) -> None:
        """
        Take note of a failure that is the server's.

        Args:
            now_s: Monotonic time.
            reason: For people.
            is_probe: Whether the request was the probe. While it rests, others tell nothing new.
        """
        self.num_faults += 1
        if self.state == "gone" or (not self.is_usable and not is_probe):
            return
        if is_probe or self.num_faults >= self._policy.num_faults:
            self._rest("resting", now_s, reason)

    def note_silence(self, now_s: float, reason: str) -> None:
        """Take note that it answers nothing while its peers do."""
        if self.state == "gone":
            return
        self._rest("suspect" if self.is_usable else "resting", now_s, reason)

    def leave(self, now_s: float) -> None:
        """Take note that the server is no longer among those to ask."""
        if self.state != "gone":
            self._enter("gone", now_s, None)

    def rejoin(self, now_s: float) -> None:
        """Take note that a server that had left is among those to ask again."""
        if self.state == "gone":
            self.num_faults = self._num_rests = 0
            self._enter("starting", now_s, None)

    def _rest(self, state: EndpointState, now_s: float, reason: str) -> None:
        policy = self._policy
        if self.is_usable:
            self.num_outages += 1
            if self.state == "healthy" and now_s - self.since_s >= policy.max_rest_s:
                self._num_rests = 0
        pause_s = min(policy.max_rest_s, policy.first_rest_s * 2.0 ** min(self._num_rests, 30))
        self._num_rests += 1
        self._enter(state, now_s, reason)
        self.next_try_s = now_s + pause_s * (0.75 + 0.25 * self._jitter())

    def _enter(self, state: EndpointState, now_s: float, reason: str | None) -> None:
        if state != self.state:
            self.state, self.since_s = state, now_s
        self.reason = reason
        self.is_probing = False
