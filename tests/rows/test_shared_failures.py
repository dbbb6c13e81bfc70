"""A failure that identical rows share counts once: it cannot stop a job that other rows show to be sound."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from nemo_llm_stage import AsyncHTTPClient, Counters, LLMStage
from nemo_llm_stage.testing import Fault, SimulatedServer


@pytest.mark.parametrize("status", [400, 403])
def test_identical_rows_that_are_refused_do_not_stop_the_run(status: int) -> None:
    """Twenty of them were one request; the others are answered. Its one send is counted once."""
    with SimulatedServer(faults=[Fault(status, contains="same")], service_time_s=0.01) as server:
        client = AsyncHTTPClient(server.base_url, max_concurrent_requests=8)
        stage = LLMStage(client=client, model="sim", prompt="{{ text }}", output_column="x")
        texts = [*map(str, range(20)), *["same"] * 20, *map(str, range(100, 140))]
        rows: list[dict[str, Any]] = stage.rows_of(pa.table({"text": texts}))
        outcomes = stage.submit(rows).result()
        stage.close()
        num_requests = server.stats.num_requests
    counters = Counters()
    for outcome in outcomes:
        counters.count(outcome)
    assert (counters.num_failed, counters.num_answered) == (20, 60)
    assert counters.num_attempts == num_requests
    assert counters.num_wasted_attempts == num_requests - 60


def test_what_was_not_paid_for_is_no_waste() -> None:
    """Rate limits and refused connections are counted apart from failed answers; the parts make up the sends."""
    faults = [Fault(429, contains="a", attempts=2), Fault(500, contains="b", attempts=1)]
    with SimulatedServer(faults=faults) as server:
        client = AsyncHTTPClient(server.base_url, base_delay=0.0)
        stage = LLMStage(client=client, model="sim", prompt="{{ text }}", output_column="x")
        outcomes = stage.submit([{"text": text} for text in "abc"]).result()
        stage.close()
        num_requests = server.stats.num_requests
    client = AsyncHTTPClient(server.base_url, max_retries=1, base_delay=0.0)
    stage = LLMStage(client=client, model="sim", prompt="{{ text }}", output_column="x")
    outcomes += stage.submit([{"text": "d"}]).result()  # the server is gone
    stage.close()
    counters = Counters()
    for outcome in outcomes:
        counters.count(outcome)
    assert counters.num_attempts == num_requests == 6
    assert (counters.num_rate_limited, counters.num_failed_answers, counters.num_wasted_attempts) == (2, 1, 1)
    assert (counters.num_refused_connections, counters.num_failed) == (2, 1)


def test_counts_of_other_versions_are_read() -> None:
    """Earlier ones lack some counts, later ones have more."""
    assert Counters.of({"num_rows": 3, "num_of_the_future": 1}) == Counters(num_rows=3)
