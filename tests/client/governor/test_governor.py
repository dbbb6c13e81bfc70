"""The limit finds what a server can take: in a model of servers, in virtual time, always in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from nemo_llm_stage.client.governor.by_queue import MAX_PREEMPTED
from nemo_llm_stage.client.governor.governor import START_LIMIT, Governor, GovernorSettings
from nemo_llm_stage.client.governor.metrics import ServerLoad
from nemo_llm_stage.client.governor.signals import Signals
from tests.client.governor.toy_servers import Load, Outcome, Server

FIXED = (16, 24, 64, 128, 256, 300, 512)
SECONDS = 150

LOADS: dict[str, Callable[[], Load]] = {
    "256 slots": lambda: Load([Server(slots=256)]),
    "200 slots": lambda: Load([Server(slots=200)]),
    "16 slots": lambda: Load([Server(slots=16)]),
    "short answers": lambda: Load([Server(slots=256)], output_tokens=8),
    "long prompts": lambda: Load([Server(slots=256)], output_tokens=50, prompt_tokens=lambda _: 3000),
    "a KV cache of known size": lambda: Load([Server(slots=1024, kv_tokens=90_000)]),
    "a KV cache of unknown size": lambda: Load([Server(slots=1024, kv_tokens=90_000)], tells_kv_size=False),
    "no metrics": lambda: Load([Server(slots=256)], shows="none"),
    "two servers behind one address": lambda: Load([Server(slots=128), Server(slots=128)], shows="one"),
}


def answers_of(outcome: Outcome, from_s: int) -> float:
    return sum(outcome.tokens[from_s:]) / (200 * math.exp(0.125))


def run(make: Callable[[], Load], seconds: int = SECONDS) -> tuple[Governor, Outcome]:
    governor = Governor()
    return governor, make().run(governor, seconds)


@pytest.mark.parametrize("name", LOADS)
def test_the_limit_reaches_the_work_of_the_best_fixed_number(name: str) -> None:
    """90 % of it within 60 s, 95 % from there on."""
    runs = {fixed: LOADS[name]().run(fixed, 100) for fixed in FIXED}
    best = max(outcome.rate(40, 100) for outcome in runs.values())
    _, outcome = run(LOADS[name])
    reached = next(second for second in range(SECONDS) if outcome.rate(second, second + 5) >= 0.9 * best)
    assert reached <= 60
    assert outcome.rate(60, SECONDS) >= 0.95 * best


@pytest.mark.parametrize("name", ["a KV cache of known size", "a KV cache of unknown size"])
def test_preemptions_do_not_go_on(name: str) -> None:
    """The start may throw some requests out of the cache; afterwards few are, for each one that is answered."""
    governor = Governor()
    early = LOADS[name]().run(governor, 40).num_preemptions
    storm = LOADS[name]().run(512, 100).num_preemptions
    outcome = LOADS[name]().run(Governor(), SECONDS)
    assert early <= 0.2 * storm
    assert outcome.num_preemptions - early <= 1.5 * MAX_PREEMPTED * answers_of(outcome, 40)
    assert governor.status.bottleneck == "kv cache"


def test_without_metrics_a_full_cache_is_found_by_the_work() -> None:
    """More in flight brings less where the cache overflows."""
    make = lambda: Load([Server(slots=1024, kv_tokens=90_000)], shows="none")  # noqa: E731
    _, outcome = run(make, 300)
    assert outcome.rate(120, 300) >= 0.95 * make().run(256, 100).rate(40, 100)


def test_small_loads_get_what_64_gives() -> None:
    """Starting low costs at most 15 % where the rows are few."""
    for slots in (4, 64, 256):
        fixed = Load([Server(slots=slots)]).run(64, 30)
        _, outcome = run(lambda slots=slots: Load([Server(slots=slots)]), 30)  # type: ignore[misc]
        assert outcome.rate(0, 30) >= 0.85 * fixed.rate(0, 30)


def test_another_client_gets_its_share_and_gives_it_back() -> None:
    """The limit is lower while another one keeps 150 in flight, and afterwards as before."""
    governor = Governor()
    outcome = Load([Server(slots=256)], others={40: 150, 90: 0}).run(governor, SECONDS)
    assert 120 <= outcome.limits[85] <= 160
    assert outcome.rate(110, SECONDS) >= 0.95 * Load([Server(slots=256)]).run(256, 100).rate(40, 100)


def test_full_servers_behind_one_address_are_not_filled_on_and_on() -> None:
    """Their queue grows with the limit, and for a while the answers do not show it."""
    _, outcome = run(LOADS["two servers behind one address"], 300)
    assert max(outcome.limits) <= 2.5 * 256


def test_another_client_that_does_not_give_way_leaves_half_of_the_server() -> None:
    """The limit gives way to its queue, but not for ever."""
    outcome = Load([Server(slots=256)], others={40: 400}).run(Governor(), SECONDS)
    assert min(outcome.limits[60:]) >= 0.45 * 256


def test_too_few_rows_move_nothing() -> None:
    """A limit that holds nothing back is neither raised nor lowered, and the input is named."""
    governor = Governor()
    outcome = Load([Server(slots=256)], rows_per_s=2).run(governor, 60)
    assert max(outcome.limits) == min(outcome.limits) == START_LIMIT
    assert governor.status.bottleneck == "input"


def test_a_client_without_cpu_time_is_named_and_not_given_more() -> None:
    """More requests in flight would not help it."""
    governor = Governor()
    for second in range(20):
        governor.tick(Signals(second, 64, 64, num_waiting=8, load=ServerLoad("vllm", 64, 0), client_busy=0.97))
    assert governor.limit == START_LIMIT
    assert governor.status.bottleneck == "client cpu"


def test_long_prompts_are_bounded_by_their_tokens() -> None:
    """A run of long prompts does not overrun the cache that short ones fitted into."""
    servers: list[Server] = []

    def make() -> Load:
        servers[:] = [Server(slots=1024, kv_tokens=90_000)]
        return Load(servers, prompt_tokens=lambda second: 200 if second < 60 else 2000)

    early = run(make, 55)[1].num_preemptions
    governor, outcome = run(make, 120)
    assert outcome.num_preemptions - early <= MAX_PREEMPTED * answers_of(outcome, 55)
    assert governor.max_tokens is not None
    assert len(servers[0].waiting) <= 0.5 * len(servers[0].running)


def test_metrics_of_one_server_of_several_are_not_trusted() -> None:
    """They show half of what is in flight; the limit follows the work instead, and says why."""
    governor, _ = run(LOADS["two servers behind one address"], 30)
    assert governor.status.mode == "throughput"
    assert "several servers" in governor.status.reason


def test_a_server_that_shows_nothing_now_and_then_is_trusted() -> None:
    """Its own queue in front of the engine fills and empties, as vLLM's does on a machine without CPU to spare."""
    governor = Governor()
    for second in range(20):
        governor.tick(Signals(second, 64, 64, load=ServerLoad("vllm", 56 if second % 2 else 0, 0)))
    assert governor.status.mode == "metrics"


def test_a_first_token_that_is_awaited_is_no_queue() -> None:
    """Where waiting requests may be computing their prompts, the limit follows the work."""
    governor = Governor()
    governor.tick(Signals(1, 32, 32, load=ServerLoad("dynamo", 10, 22, is_queue=False)))
    assert governor.status.mode == "throughput"


def test_stale_metrics_are_left() -> None:
    """A server that stops telling is followed by its work."""
    governor = Governor()
    governor.tick(Signals(1, 32, 32, load=ServerLoad("vllm", 32, 0)))
    assert governor.status.mode == "metrics"
    governor.tick(Signals(10, 32, 32))
    assert governor.status.mode == "throughput"


def test_a_refusal_lowers_the_limit_once_an_episode() -> None:
    """Refusals of requests that were sent before the cut say nothing new."""
    governor = Governor(settings=GovernorSettings(start=100))
    assert governor.note_refusal(sent_at_s=1, now_s=2, num_held=40)
    assert governor.limit == 80
    assert not governor.note_refusal(sent_at_s=1.9, now_s=2.1, num_held=40)
    assert governor.limit == 80
    assert governor.note_refusal(sent_at_s=3, now_s=4, num_held=40)
    assert governor.limit == 64
    assert governor.status.mode == "refusals"
    assert governor.status.bottleneck == "rate limit"


def test_a_refusal_leaves_what_the_server_holds() -> None:
    """What is in flight and not refused is what the server takes."""
    governor = Governor(settings=GovernorSettings(start=100))
    for second in range(1, 20):
        governor.note_refusal(sent_at_s=second, now_s=second, num_held=60)
    assert governor.limit == 76


def test_after_refusals_the_limit_grows_in_small_rounds() -> None:
    """Not before the time that the server asked for is over."""
    governor = Governor(settings=GovernorSettings(start=100))
    governor.note_refusal(sent_at_s=0, now_s=0, num_held=0, retry_after_s=30)
    limits = []
    for second in range(1, 61):
        governor.tick(Signals(second, governor.limit, governor.limit, num_waiting=1))
        limits.append(governor.limit)
    assert limits[28] == 80
    assert limits[30] == 85
    assert 100 < limits[-1] < 130


def test_the_limit_stays_within_its_bounds() -> None:
    """However much room the server has."""
    governor = Governor(settings=GovernorSettings(start=32, largest=100))
    for second in range(60):
        governor.tick(Signals(second, governor.limit, governor.limit, load=ServerLoad("vllm", governor.limit, 0)))
    assert governor.limit == 100


def test_without_metrics_little_is_thrown_out_of_a_full_cache() -> None:
    """Of limits that bring the same the smaller one is kept, though nothing tells how many are thrown out."""
    make = lambda: Load([Server(slots=1024, kv_tokens=25_600)], shows="none", prompt_tokens=lambda _: 78)  # noqa: E731
    early = make().run(Governor(), 90).num_preemptions
    outcome, storm = make().run(Governor(), 250), make().run(256, 100)
    best = max(make().run(fixed, 100).rate(40, 100) for fixed in (96, 104, 112, 128))
    assert outcome.num_preemptions - early <= 0.3 * answers_of(outcome, 90)
    assert storm.num_preemptions >= 2 * answers_of(storm, 0)
    assert outcome.rate(60, 250) >= 0.95 * best
