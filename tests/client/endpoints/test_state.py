"""The states of one server, for any order of outcomes and times."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nemo_llm_stage.client.endpoints.state import Breaker, EndpointPolicy

POLICY = EndpointPolicy(num_faults=3, first_rest_s=5.0, max_rest_s=60.0)


class BreakerMachine(RuleBasedStateMachine):
    """Outcomes come in any order, late ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = Breaker(POLICY, 0.0)
        self.num_faults = 0

    @rule(seconds=st.floats(0.0, 100.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def answer(self) -> None:
        self.breaker.note_answer(self.now)
        self.num_faults = 0
        assert self.breaker.state in {"healthy", "gone"}

    @rule()
    def fault(self) -> None:
        was = self.breaker.state
        self.breaker.note_fault(self.now, "refused")
        self.num_faults += 1
        if was in {"starting", "healthy"}:
            assert (self.breaker.state == "resting") == (self.num_faults >= POLICY.num_faults)
        else:
            assert self.breaker.state == was

    @rule()
    def silence(self) -> None:
        was_usable = self.breaker.is_usable
        self.breaker.note_silence(self.now, "silent")
        assert self.breaker.state == "gone" or self.breaker.state == ("suspect" if was_usable else "resting")

    @precondition(lambda self: self.breaker.is_due(self.now))
    @rule(end=st.sampled_from(["answer", "fault", "cancelled"]))
    def probe(self, end: str) -> None:
        self.breaker.begin_probe()
        assert not self.breaker.is_due(self.now)
        if end == "answer":
            self.breaker.note_answer(self.now)
            self.num_faults = 0
        elif end == "fault":
            self.breaker.note_fault(self.now, "refused", is_probe=True)
            self.num_faults += 1
        self.breaker.end_probe(self.now)
        if end == "cancelled":
            assert self.breaker.is_due(self.now)
        elif end == "fault":
            assert self.breaker.state == "resting"
            assert not self.breaker.is_due(self.now)

    @rule()
    def leave(self) -> None:
        self.breaker.leave(self.now)
        assert self.breaker.state == "gone"

    @rule()
    def rejoin(self) -> None:
        if self.breaker.state == "gone":
            self.num_faults = 0
        self.breaker.rejoin(self.now)
        assert self.breaker.state != "gone"

    @invariant()
    def rests_have_an_end(self) -> None:
        breaker = self.breaker
        assert breaker.is_usable + breaker.is_down + (breaker.state == "gone") == 1
        if breaker.is_down:
            assert breaker.reason is not None
            assert breaker.next_try_s <= self.now + POLICY.max_rest_s
        else:
            assert breaker.reason is None
        assert breaker.since_s <= self.now


BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBreaker = BreakerMachine.TestCase


def rests(breaker: Breaker, num: int, now_s: float = 0.0) -> list[float]:
    """The lengths of `num` rests in a row, each ended by a probe that fails."""
    lengths = []
    for _ in range(POLICY.num_faults):
        breaker.note_fault(now_s, "refused")
    for _ in range(num):
        lengths.append(breaker.next_try_s - now_s)
        now_s = breaker.next_try_s
        breaker.begin_probe()
        breaker.note_fault(now_s, "refused", is_probe=True)
    return lengths


def test_rests_grow_to_a_minute() -> None:
    """5 s, 10 s, 20 s, 40 s, 60 s, 60 s."""
    assert rests(Breaker(POLICY, 0.0, jitter=lambda: 1.0), 6) == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_rests_are_jittered() -> None:
    """Workers do not come back to a server in step."""
    assert rests(Breaker(POLICY, 0.0, jitter=lambda: 0.0), 2) == [3.75, 7.5]


def test_a_flapping_server_rests_longer_each_time() -> None:
    """It is up for too short a time between two rests."""
    breaker = Breaker(POLICY, 0.0, jitter=lambda: 1.0)
    rests(breaker, 2)
    breaker.note_answer(20.0)
    assert rests(breaker, 1, 30.0) == [40.0]


def test_a_server_that_was_healthy_for_a_minute_begins_with_the_first_rest() -> None:
    """What was long ago does not count."""
    breaker = Breaker(POLICY, 0.0, jitter=lambda: 1.0)
    rests(breaker, 3)
    breaker.note_answer(40.0)
    assert rests(breaker, 1, 100.0) == [5.0]
