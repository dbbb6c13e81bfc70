"""The stage as a Ray Data transform."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from nemo_llm_stage import AsyncHTTPClient, InputError, LLMStage
from nemo_llm_stage.testing import SimulatedServer, expected_answer

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(service_time_s=0.005) as server:
        yield server


def make_stage(server: SimulatedServer) -> LLMStage:
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=16)
    return LLMStage(client=client, model="sim", prompt="Say {{ text }}", output_column="x")


def test_a_dataset_gets_the_columns(server: SimulatedServer, tmp_path: Path) -> None:
    """Between a read and a write of Ray Data's own, with nothing asked twice."""
    import ray.data

    pd.DataFrame({"id": range(500), "text": [f"row {i}" for i in range(500)]}).to_parquet(tmp_path / "in.parquet")
    dataset = make_stage(server).map(ray.data.read_parquet(str(tmp_path / "in.parquet")), num_actors=2)
    dataset.write_parquet(str(tmp_path / "out"))
    out = pd.read_parquet(tmp_path / "out").sort_values("id")
    assert out["x"].tolist() == [expected_answer([{"role": "user", "content": f"Say row {i}"}]) for i in range(500)]
    assert list(out.columns) == ["id", "text", "x", "x_error", "x_meta"]
    assert server.stats.num_duplicates == 0


def test_a_missing_column_is_told_when_the_plan_is_made(server: SimulatedServer) -> None:
    """Not in the middle of the run."""
    import ray.data

    with pytest.raises(InputError, match="'text'"):
        make_stage(server).map(ray.data.from_items([{"txt": "a"}]))
