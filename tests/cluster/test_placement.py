"""Actors for the servers that there are, beside them where a node runs one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nemo_llm_stage import AsyncHTTPClient, LLMStage, run_job
from nemo_llm_stage.cluster.placement import actors_for, node_of, place_at
from nemo_llm_stage.testing import SimulatedServer

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def urls(num: int) -> list[str]:
    return [f"http://server-{number}:8000/v1" for number in range(num)]


def test_there_is_an_actor_for_each_server_as_far_as_there_are_cpus() -> None:
    """The cluster has 4 CPUs and one node."""
    assert actors_for(urls(3), 0.5) == 3
    assert actors_for(urls(100), 0.5) == 8
    assert actors_for(urls(2), 100) == 1
    assert actors_for([], 0.5) == 1


def test_an_actor_goes_to_the_node_of_its_server() -> None:
    """By the address that Ray knows; a server elsewhere has no node."""
    import ray

    node = ray.nodes()[0]
    there = f"http://{node['NodeManagerAddress']}:8000/v1"
    assert node_of([*urls(1), there]) == node["NodeID"]
    assert node_of(urls(2)) is None
    assert place_at(None) == "SPREAD"
    assert (place_at(node["NodeID"]).node_id, place_at(node["NodeID"]).soft) == (node["NodeID"], True)


def test_a_job_with_actors_auto_runs_on_ray(tmp_path: Path) -> None:
    """Here with two servers, so two actors."""
    pd.DataFrame({"text": [f"row {i}" for i in range(80)]}).to_parquet(tmp_path / "in.parquet")
    slow = {"service_time_s": 0.3}  # so that one actor is not done before the other has started
    with SimulatedServer(**slow) as one, SimulatedServer(**slow) as other:
        client = AsyncHTTPClient([one.base_url, other.base_url], max_concurrent_requests=4)
        stage = LLMStage(client=client, model="sim", prompt="{{ text }}", output_column="x")
        result = run_job(
            stage=stage,
            input=tmp_path / "in.parquet",
            output=tmp_path / "out",
            actors="auto",
            rows_per_partition=10,
            progress=False,
        )
        assert result.counters.num_answered == 80
        assert min(one.stats.num_requests, other.stats.num_requests) > 0
