"""Refusals that come however few requests are sent are told from those that less would spare."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from nemo_llm_stage.client.governor.chance import MAX_SHARE, Chance

MOST_PER_S = 20.0
Takes = Callable[[float], bool]


def by_chance(share: float, seed: int = 1) -> Takes:
    rng = random.Random(seed)
    return lambda _: rng.random() >= share


def by_rate(per_s: float, burst: float = 1.0) -> Takes:
    left, at_s = burst, 0.0

    def takes(now_s: float) -> bool:
        nonlocal left, at_s
        left, at_s = min(burst, left + per_s * (now_s - at_s)), now_s
        if left < 1:
            return False
        left -= 1
        return True

    return takes


class Run:
    """A client that sends as many a second as it may, a little less after each refusal."""

    def __init__(self) -> None:
        self.chance = Chance()
        self.per_s = MOST_PER_S
        self.now_s = 0.0
        self.num_sent = self.num_refused = 0

    def go_on(self, takes: Takes, until_s: float) -> Run:
        """Send until then."""
        next_tick_s = self.now_s
        while self.now_s < until_s:
            self.now_s += 1 / (self.chance.trial_per_s or (MOST_PER_S if self.chance.share else self.per_s))
            self.num_sent += 1
            if not takes(self.now_s):
                self.num_refused += 1
                if not self.chance.note_refusal(self.now_s, self.num_sent, self.num_sent, 0):
                    self.per_s = max(1.0, 0.95 * self.per_s)
            if self.now_s >= next_tick_s:
                next_tick_s = self.now_s + 1
                self.chance.tick(self.now_s, self.num_sent, 0)
        return self


@pytest.mark.parametrize("share", [0.05, 0.06, 0.1, 0.2])
@pytest.mark.parametrize("seed", range(5))
def test_chance_is_found_within_a_minute(share: float, seed: int) -> None:
    """And the share is told."""
    assert Run().go_on(by_chance(share, seed), 60).chance.share == pytest.approx(share, rel=1.0)


def test_a_rare_chance_is_found_after_a_while() -> None:
    """Nobody is hurt by it before."""
    run = Run().go_on(by_chance(0.02), 150)
    assert run.chance.share is None
    assert run.go_on(by_chance(0.02), 600).chance.share is not None


@pytest.mark.parametrize("per_s", [1.0, 5.0, 10.0, 15.0, 19.0])
@pytest.mark.parametrize("burst", [1.0, 20.0, 200.0])
def test_a_rate_limit_is_no_chance(per_s: float, burst: float) -> None:
    """Whatever may be sent at once."""
    run, takes = Run(), by_rate(per_s, burst)
    for second in range(1, 300):
        assert run.go_on(takes, second).chance.share is None


def test_many_refusals_are_never_taken_for_chance() -> None:
    """Less is sent to a server that refuses so much."""
    assert Run().go_on(by_chance(1.6 * MAX_SHARE), 300).chance.share is None


def test_a_new_reason_ends_it() -> None:
    """At once where nearly everything is refused, and soon where more is than before."""
    for takes in (by_rate(1.0), by_chance(0.4)):
        run = Run().go_on(by_chance(0.06), 60)
        assert run.chance.share is not None
        refused = run.num_refused
        assert run.go_on(takes, 85).chance.share is None
        assert run.num_refused - refused < 0.5 * 25 * MOST_PER_S
