"""Rows that take several requests, in a job: journaled one by one, resumed, and accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nemo_llm_stage import AsyncHTTPClient, FatalError, JobResult, LLMStage, run_job
from nemo_llm_stage.testing import Fault, SimulatedServer


def answer(body: dict[str, Any]) -> str:
    """Answer every other row badly at first."""
    messages = body["messages"]
    number = int(messages[0]["content"].rpartition(" ")[2])
    return "good" if number % 2 == 0 or len(messages) > 1 else "what?"


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(answer=answer) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pd.DataFrame({"text": [f"row {i}" for i in range(40)]}).to_parquet(tmp_path / "in.parquet")
    return tmp_path


def run(server: SimulatedServer, folder: Path) -> JobResult:
    stage = LLMStage(
        client=AsyncHTTPClient(server.base_url, max_concurrent_requests=1, max_retries=0),
        model="sim",
        prompt="{{ text }}",
        output_column="x",
        parser=["good", "bad"],
    )
    options: dict[str, Any] = {"engine": "local", "rows_per_partition": 10, "progress": False}
    return run_job(stage=stage, input=folder / "in.parquet", output=folder / "out", **options)


def test_corrections_are_counted_as_waste(server: SimulatedServer, folder: Path) -> None:
    """Every row is answered all the same."""
    counters = run(server, folder).counters
    assert (counters.num_answered, counters.num_attempts, counters.num_wasted_attempts) == (40, 60, 20)
    assert counters.wasted_output_tokens == 20 * 2
    out = pd.read_parquet(folder / "out")
    assert out["x"].tolist() == ["good"] * 40
    recoveries = Counter(meta["recovery"] for meta in out["x_meta"])
    assert recoveries == {None: 20, "reask": 20}


def test_a_stopped_run_pays_for_no_request_twice(server: SimulatedServer, folder: Path) -> None:
    """Neither for a row's first answer nor for its correction."""
    server.faults = [Fault(401, contains=f"row {i}") for i in range(25, 40)]
    with pytest.raises(FatalError):
        run(server, folder)
    assert server.stats.by_status[200] > 0
    server.faults = []
    counters = run(server, folder).counters
    assert (counters.num_answered, counters.num_wasted_attempts) == (40, 20)
    answered = Counter(str(request.body["messages"]) for request in server.requests if request.status == 200)
    assert sum(answered.values()) - len(answered) <= 2  # in flight as the run stopped
