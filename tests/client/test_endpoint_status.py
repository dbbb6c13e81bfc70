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
from nemo_llm_stage.errors import ConnectionFailedError, RateLimitError
from nemo_llm_stage.testing import Fault, SimulatedServer

URL = "http://a/v1"


def test_outcomes_are_counted_by_kind() -> None:
    """An answer with its latency, a refusal for the rate, a refused connection."""
    meter = EndpointMeter(URL)
    meter.note_answer(2.0)
    meter.note_failure(RateLimitError("HTTP 429: slow down", status=429))
    meter.note_failure(ConnectionFailedError("refused"))
    status = meter.status()
    assert (status.num_answered, status.num_failed, status.num_rate_limited, status.num_refused) == (1, 2, 1, 1)
    assert (meter.num_sends, status.failures) == (3, {"rate_limit": 1, "connection_failed": 1})
    assert status.p50_s == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("latency_s", [0.0005, 0.01, 1.0, 59.0, 5000.0])
def test_a_percentile_is_at_most_a_tenth_off(latency_s: float) -> None:
    """Over six powers of ten."""
    latencies = [0] * 200
    latencies[bucket_of(latency_s)] = 1
    assert percentile_s(latencies, 0.95) == pytest.approx(max(latency_s, 0.00109), rel=0.1)


def test_workers_see_one_server_together() -> None:
    """Counts add up; it rests only if it does so for all of them."""
    down = EndpointStatus(URL, "resting", since=5.0, num_answered=1, num_refused=7, latencies=(1,))
    up = EndpointStatus(URL, "healthy", in_flight=3, num_answered=2, latencies=(0, 2))
    (merged,) = merge_endpoints([down, up])
    assert (merged.state, merged.in_flight, merged.num_answered, merged.num_refused) == ("healthy", 3, 3, 7)
    assert merged.latencies == (1, 2)
    assert merge_endpoints([down, down])[0].is_down
    assert len(merge_endpoints([down, EndpointStatus("http://b/v1")])) == 2


def test_the_client_tells_of_each_of_its_servers() -> None:
    """Of all that it has sent to."""

    async def ask(client: AsyncHTTPClient) -> Any:
        for _ in range(4):
            await client.complete(messages=[{"role": "user", "content": "x"}], model="sim")

    with SimulatedServer() as one, SimulatedServer() as other:
        other.faults = [Fault(429, attempts=1)]
        client = AsyncHTTPClient([one.base_url, other.base_url], base_delay=0.0)
        assert client.endpoint_statuses() == ()
        asyncio.run(ask(client))
        first, second = client.endpoint_statuses()
    assert first.num_answered + second.num_answered == 4
    assert (first.url, second.num_rate_limited, first.in_flight) == (one.base_url, 1, 0)
