"""Orders and limits reach actors of Ray as they reach workers of this process."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nemo_llm_stage import AsyncHTTPClient, LLMStage, run_job
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.state.orders import give_order, read_answer
from nemo_llm_stage.dataset.state.status import JobStatus, read_status
from nemo_llm_stage.errors import RunStoppedError
from nemo_llm_stage.testing import SimulatedServer

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def wait_for(state: Any, is_there: Any) -> JobStatus:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        status = read_status(state)
        if status is not None and is_there(status):
            return status
        time.sleep(0.1)
    raise AssertionError(f"it never came: {read_status(state)}")


def test_four_actors_pause_go_on_and_end_at_a_limit(tmp_path: Path) -> None:
    """Of requests over all of them: not one more is sent."""
    pd.DataFrame({"text": [f"row {i}" for i in range(1000)]}).to_parquet(tmp_path / "in.parquet")
    state = OutputFolder(str(tmp_path / "out")).state
    seen: dict[str, Any] = {}

    def steer(server: SimulatedServer) -> None:
        wait_for(state, lambda status: status.counters.num_rows > 0)
        pause = give_order(state, "pause")
        wait_for(state, lambda status: status.phase == "paused" and not status.num_in_flight)
        seen["num_in_pause"] = server.stats.num_requests
        seen["pause"] = read_answer(state, pause)
        give_order(state, "set", {"max_requests": 500})
        wait_for(state, lambda status: status.limits.get("max_requests") == 500)
        seen["num_after_pause"] = server.stats.num_requests
        give_order(state, "resume")

    with SimulatedServer(service_time_s=0.1) as server:
        client = AsyncHTTPClient(server.base_url, max_concurrent_requests=4)
        stage = LLMStage(client=client, model="sim", prompt="Say {{ text }}", output_column="x")
        steering = threading.Thread(target=steer, args=(server,))
        steering.start()
        with pytest.raises(RunStoppedError, match="max_requests = 500 is reached"):
            run_job(
                stage=stage,
                input=tmp_path / "in.parquet",
                output=tmp_path / "out",
                rows_per_partition=50,
                actors=4,
                progress=False,
            )
        steering.join()
        assert seen["pause"].is_done
        assert seen["num_in_pause"] == seen["num_after_pause"] < 500
        assert 500 - 16 <= server.stats.num_requests <= 500
    status = read_status(state)
    assert status is not None
    assert status.phase == "stopped"
    assert status.spending["num_requests"] == server.stats.num_requests


@pytest.mark.slow
def test_four_actors_spend_no_more_than_what_is_in_flight_over_the_cost(tmp_path: Path) -> None:
    """And not less, though each is granted its part before it has rows; the limit is named."""
    pd.DataFrame({"text": [f"row {i}" for i in range(1000)]}).to_parquet(tmp_path / "in.parquet")
    num_in_flight, most_tokens = 16, 12
    with SimulatedServer(service_time_s=0.05) as server:
        client = AsyncHTTPClient(server.base_url, max_concurrent_requests=num_in_flight)
        stage = LLMStage(client=client, model="sim", prompt="Say {{ text }}", output_column="x")
        with pytest.raises(RunStoppedError, match="max_cost = 3000 is reached"):
            run_job(
                stage=stage,
                input=tmp_path / "in.parquet",
                output=tmp_path / "out",
                rows_per_partition=50,
                actors=4,
                progress=False,
                max_cost=3000,
                price_output=1e6,  # a dollar for an output token
            )
        assert 3000 <= server.stats.output_tokens <= 3000 + num_in_flight * most_tokens
