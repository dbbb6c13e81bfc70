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
