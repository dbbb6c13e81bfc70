"""Limits of requests, tokens, money and time hold over all workers; the job ends resumably and names the limit."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from slow_job import invoke

from nemo_llm_stage.client.throttle import Spending
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.errors import ConfigError, RunStoppedError
from nemo_llm_stage.worker.control.allowances import Allowances
from nemo_llm_stage.worker.orders import Need

IN_FLIGHT = 4 * 8
"""Workers times requests in flight of each."""


def many_rows(job: Any, num_rows: int = 1500) -> Any:
    path = job.folder / "many.parquet"
    if not path.exists():
        pq.write_table(pa.table({"text": [f"row {i}" for i in range(num_rows)]}), path)
    return path


def run(job: Any, **settings: Any) -> Any:
    return job.run(input=many_rows(job), rows_per_partition=50, actors=4, **settings)


@pytest.mark.slow
def test_no_more_requests_are_sent_than_allowed(job: Any) -> None:
    """By four workers together, to the last one; a higher limit goes on from there."""
    with pytest.raises(RunStoppedError, match="max_requests = 400 is reached"):
        run(job, max_requests=400)
    assert 400 - 8 <= job.server.stats.num_requests <= 400
    with pytest.raises(RunStoppedError, match="max_requests = 600 is reached"):
        run(job, max_requests=600)
    assert job.server.stats.num_requests <= 600
    assert run(job).counters.num_rows == 1500
    assert job.server.stats.num_requests == 1500


@pytest.mark.parametrize("name", ["max_output_tokens", "max_cost"])
def test_tokens_and_money_overshoot_by_what_is_in_flight(job: Any, name: str) -> None:
    """At most."""
    prices = {"price_input": 0.0, "price_output": 1e6}  # a dollar for an output token
    with pytest.raises(RunStoppedError, match=f"{name} = 4000 is reached"):
        run(job, **prices, **{name: 4000})
    stats = job.server.stats
    most_tokens = 12  # of an answer
    assert 4000 - IN_FLIGHT * most_tokens <= stats.output_tokens <= 4000 + IN_FLIGHT * most_tokens


def test_a_run_ends_after_its_longest_time(job: Any) -> None:
    """And says so, with an exit code of its own on the command line."""
    with pytest.raises(RunStoppedError, match=r"max_duration = 0\.2 s is reached"):
        run(job, max_duration=0.2, requests_per_minute=600)


@pytest.mark.slow
def test_a_rate_of_requests_holds_over_all_workers(job: Any) -> None:
    """In every second of it, but for the first."""
    started = time.monotonic()
    with pytest.raises(RunStoppedError):
        run(job, requests_per_minute=1200, max_duration=6.0)
    elapsed_s = time.monotonic() - started
    assert job.server.stats.num_requests <= 20 * elapsed_s + 40
    assert job.server.stats.num_requests >= 40


@pytest.mark.slow
def test_a_rate_of_tokens_holds_over_a_whole_job(job: Any) -> None:
    """Over all workers and to its last row; the rate is used, too."""
    per_s, num_rows = 400, 120
    started = time.monotonic()
    result = job.run(input=many_rows(job, num_rows), rows_per_partition=30, actors=4, tokens_per_minute=60 * per_s)
    elapsed_s = time.monotonic() - started
    stats = job.server.stats
    num_tokens = stats.prompt_tokens + stats.output_tokens
    assert result.counters.num_answered == num_rows
    assert num_tokens > 3 * per_s  # else it says nothing
    assert num_tokens <= per_s * elapsed_s + 2 * per_s
    assert elapsed_s <= num_tokens / per_s + 6


def test_a_limit_of_cost_needs_prices() -> None:
    """Nobody guesses them."""
    with pytest.raises(ConfigError, match="max_cost needs prices"):
        JobSettings(max_cost=3.0)


def test_the_command_ends_with_exit_code_4(slow_job: Any) -> None:
    """For scripts that go on when a limit was raised."""
    result = invoke(*slow_job.words("--max-requests", "30", "--no-progress", num_rows=100))
    assert result.exit_code == 4
    assert "max_requests = 30 is reached" in result.stderr
    assert slow_job.server.stats.num_requests <= 30


def simulate(settings: JobSettings, needs: dict[str, float], seconds: float) -> dict[str, int]:
    """Return what workers that could send so many requests a second were granted, asked ten times a second."""
    allowances = Allowances(settings, Spending(), 8)
    sent = dict.fromkeys(needs, 0)
    for tick in range(int(seconds * 10)):
        for worker, per_s in needs.items():
            need = Need(num_waiting=100, spending=Spending(num_requests=sent[worker]))
            grant = allowances.grant_of(worker, need, tick / 10)
            sent[worker] = int(min(sent[worker] + max(1, per_s / 10), grant.num_requests))
    return sent


def test_a_rate_is_used_up_by_whoever_can_use_it() -> None:
    """A slow worker leaves its share to a fast one."""
    sent = simulate(JobSettings(requests_per_minute=3000), {"slow": 10, "fast": 200}, seconds=10)
    assert 480 <= sum(sent.values()) <= 500 + 100 + 1
    assert sent["fast"] > 3 * sent["slow"]


def test_a_budget_is_granted_to_the_last_request() -> None:
    """And never more than that."""
    assert sum(simulate(JobSettings(max_requests=1000), {"a": 50, "b": 50, "c": 3}, seconds=60).values()) == 1000


@pytest.mark.parametrize(
    "needs",
    [
        [Need(), Need()],  # before the first rows have come
        [Need(num_waiting=50)] * 9,  # they have come, and nothing is sent yet
        [Need(num_waiting=50), *[Need(num_retrying=8, spending=Spending(num_requests=8))] * 9],  # in an outage
        [Need(num_waiting=50), *[Need(num_in_flight=8, spending=Spending(num_requests=8))] * 9],
    ],
    ids=["starting", "waiting", "retrying", "in flight"],
)
def test_a_budget_that_is_granted_is_not_spent(needs: list[Need]) -> None:
    """As long as a worker may still use its part."""
    allowances = Allowances(JobSettings(max_output_tokens=100), Spending(), 8)
    for tick, need in enumerate(needs):
        allowances.grant_of("a", need, tick / 2)
        assert allowances.reached() is None


def test_a_rest_that_reaches_nobody_ends_the_run() -> None:
    """One worker has all that is left of the budget, and no rows; the other has rows."""
    allowances = Allowances(JobSettings(max_requests=10), Spending(), 10)
    for tick in range(8):
        allowances.grant_of("a", Need(), tick / 2)
        allowances.grant_of("b", Need(num_waiting=50), tick / 2)
    assert allowances.reached() == "max_requests = 10 is reached (0 spent)"


def test_what_a_dead_worker_spent_stays_spent() -> None:
    """Its successor starts from nothing."""
    allowances = Allowances(JobSettings(max_requests=10), Spending(), 8)
    allowances.grant_of("a", Need(spending=Spending(num_requests=0)), 0.0)
    allowances.grant_of("a", Need(spending=Spending(num_requests=8)), 0.1)
    allowances.forget("a")
    assert allowances.grant_of("a", Need(), 0.2).num_requests == 2
