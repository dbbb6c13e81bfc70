"""The Ray engine gives the same files as the local one, and survives its workers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nemo_llm_stage import AsyncHTTPClient, ConfigError, FatalError, LLMStage, MultiColumnStage, RunError, run_job
from nemo_llm_stage.testing import SimulatedServer, expected_answer

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def make_stage(server: SimulatedServer, **settings: Any) -> LLMStage:
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=16, base_delay=0.01)
    return LLMStage(**{"client": client, "model": "sim", "prompt": "Say {{ text }}", "output_column": "x"} | settings)


def answers(num: int) -> list[str]:
    return [expected_answer([{"role": "user", "content": f"Say row {i}"}]) for i in range(num)]


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(service_time_s=0.1) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    pd.DataFrame({"text": [f"row {i}" for i in range(400)]}).to_parquet(tmp_path / "in" / "a.parquet")
    return tmp_path


def run(stage: Any, folder: Path, **settings: Any) -> Any:
    options = {"input": folder / "in", "output": folder / "out", "rows_per_partition": 40, "progress": False}
    return run_job(stage=stage, **options | settings)


def test_two_actors_give_every_row_once(server: SimulatedServer, folder: Path) -> None:
    """And ask no row twice; together they keep the limit of the server."""
    result = run(make_stage(server), folder, actors=2, rows_per_partition=20)
    assert pd.read_parquet(folder / "out")["x"].tolist() == answers(400)
    assert (result.counters.num_answered, server.stats.num_duplicates) == (400, 0)
    assert 8 < server.stats.max_in_flight <= 16


def test_a_wrong_key_ends_the_run_with_the_servers_error(server: SimulatedServer, folder: Path) -> None:
    """The same type as without Ray, and in seconds."""

    class Hopeful(AsyncHTTPClient):
        """Does not look before it asks."""

        async def check(self, model: str) -> None: ...

    client = Hopeful(server.base_url)
    with pytest.raises(FatalError, match="nope"):
        run(make_stage(server, client=client, model="nope"), folder)


def test_too_many_actors_for_the_cluster_are_refused(server: SimulatedServer, folder: Path) -> None:
    """Rather than waiting for ever."""
    with pytest.raises(ConfigError, match="4 actors of 2 CPUs need 8 CPUs"):
        run(make_stage(server), folder, actors=4, num_cpus_per_actor=2)


def test_a_killed_worker_loses_no_answer(folder: Path) -> None:
    """Kill -9 in the middle: Ray starts it again, and what was answered is not asked again."""
    killed = threading.Event()

    def kill_at_the_100th(body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"]
        if text.endswith("row 100") and not killed.is_set():
            killed.set()
            os.kill(worker_pid(), signal.SIGKILL)
        return expected_answer(body["messages"])

    with SimulatedServer(service_time_s=0.005, answer=kill_at_the_100th) as server:
        run(make_stage(server), folder)
        assert killed.is_set()
        assert pd.read_parquet(folder / "out")["x"].tolist() == answers(400)
        assert server.stats.num_repaid <= 16


def worker_pid() -> int:
    """Process of the worker actor: the one Ray process that reports to have a partition actor."""
    from ray.util.state import list_actors

    return next(
        int(actor.pid) for actor in list_actors() if "PartitionActor" in actor.class_name and actor.state == "ALIVE"
    )


def test_several_columns_run_in_actors(folder: Path) -> None:
    """Under one limit for each actor; rows that are dropped are counted."""
    with SimulatedServer(service_time_s=0.02) as server:
        client = AsyncHTTPClient(server.base_url, max_concurrent_requests=8)
        common = {"client": client}
        stages = [
            make_stage(server, output_column="a", **common),
            make_stage(server, output_column="b", prompt="Again {{ a }}", **common),
            make_stage(server, output_column="c", prompt="Other {{ text }}", **common),
        ]
        stage = MultiColumnStage(stages, keep_if="text != 'row 7'")
        result = run(stage, folder, actors=2, rows_per_partition=20)
        assert server.stats.max_in_flight <= 16
        assert server.stats.num_requests == 1200
    out = pd.read_parquet(folder / "out")
    assert out["a"].tolist() == [answer for number, answer in enumerate(answers(400)) if number != 7]
    assert (result.counters.num_answered, result.counters.num_dropped) == (399, 1)


def test_a_worker_that_cannot_be_made_ends_the_run(server: SimulatedServer, folder: Path) -> None:
    """With the reason, at once."""

    class Unpackable(AsyncHTTPClient):
        """Breaks where it arrives."""

        def __setstate__(self, state: dict[str, Any]) -> None:
            raise ImportError("no module named elsewhere")

    client = Unpackable(server.base_url)
    with pytest.raises(RunError, match="no module named elsewhere"):
        run(make_stage(server, client=client), folder)
