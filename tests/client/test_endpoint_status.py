"""What is counted for each server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nemo_llm_stage import AsyncHTTPClient
from nemo_llm_stage.client.endpoint_status import (
    EndpointMeter,
    EndpointStatus,
    bucket_of,
    merge_endpoints,
    percentile_s,
)
from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import ConnectionFailedError, LLMStageError, RateLimitError
from nemo_llm_stage.testing import Fault, SimulatedServer

URL = "http://a/v1"


class Scenario:
    def __init__(self) -> None:
        self.now = 1000.0
        self.meter = EndpointMeter(URL, lambda: self.now)

    def observe(self, outcome: Completion | Exception) -> EndpointStatus:
        async def attempt() -> Completion:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        async def observe() -> None:
            try:
                await self.meter.observe(attempt())
            except LLMStageError as error:
                assert error is outcome  # noqa: PT017 - passed on as it is

        self.now += 1
        asyncio.run(observe())
        return self.meter.status()


def test_outcomes_are_counted_by_kind() -> None:
    """An answer with its latency, a refusal for the rate, a refused connection."""
    world = Scenario()
    world.observe(Completion(("x",), latency_s=2.0))
    world.observe(RateLimitError("HTTP 429: slow down", status=429))
    status = world.observe(ConnectionFailedError("refused"))
    assert (status.num_answered, status.num_failed, status.num_rate_limited, status.num_refused) == (1, 2, 1, 1)
    assert status.p50_s == pytest.approx(2.0, rel=0.1)


def test_a_server_is_down_from_the_first_refused_connection_until_it_answers() -> None:
    """A refusal in HTTP is an answer, too."""
    world = Scenario()
    world.observe(ConnectionFailedError("refused"))
    down = world.observe(ConnectionFailedError("refused again"))
    assert (down.state, down.since, down.reason) == ("down", 1001.0, "connection_failed: refused")
    up = world.observe(RateLimitError("HTTP 429", status=429))
    assert (up.state, up.since, up.reason) == ("ok", 1003.0, None)


@pytest.mark.parametrize("latency_s", [0.0005, 0.01, 1.0, 59.0, 5000.0])
def test_a_percentile_is_at_most_a_tenth_off(latency_s: float) -> None:
    """Over six powers of ten."""
    latencies = [0] * 200
    latencies[bucket_of(latency_s)] = 1
    assert percentile_s(latencies, 0.95) == pytest.approx(max(latency_s, 0.00109), rel=0.1)


def test_workers_see_one_server_together() -> None:
    """Counts add up; it is down only if it is so for all of them."""
    down = EndpointStatus(URL, "down", since=5.0, num_answered=1, num_refused=7, latencies=(1,))
    up = EndpointStatus(URL, in_flight=3, num_answered=2, latencies=(0, 2))
    (merged,) = merge_endpoints([down, up])
    assert (merged.state, merged.in_flight, merged.num_answered, merged.num_refused) == ("ok", 3, 3, 7)
    assert merged.latencies == (1, 2)
    assert merge_endpoints([down, down])[0].state == "down"
    assert len(merge_endpoints([down, EndpointStatus("http://b/v1")])) == 2


def test_the_client_tells_of_each_of_its_servers() -> None:
    """Nothing before the first request, and counts after it."""

    async def ask(client: AsyncHTTPClient) -> Any:
        for _ in range(4):
            await client.complete(messages=[{"role": "user", "content": "x"}], model="sim")

    with SimulatedServer() as one, SimulatedServer() as other:
        other.faults = [Fault(429, attempts=1)]
        client = AsyncHTTPClient([one.base_url, other.base_url], base_delay=0.0)
        assert [status.num_answered for status in client.endpoint_statuses()] == [0, 0]
        asyncio.run(ask(client))
        first, second = client.endpoint_statuses()
    assert first.num_answered + second.num_answered == 4
    assert (first.url, second.num_rate_limited, first.in_flight) == (one.base_url, 1, 0)
