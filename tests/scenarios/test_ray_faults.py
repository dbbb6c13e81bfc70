"""Jobs on Ray whose workers, nodes and drivers are killed: every row comes out once, whoever goes on with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_cluster import RayCluster

from nemo_llm_stage.run import verify_output
from nemo_llm_stage.testing import SimulatedServer, expected_answer

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_ROWS = 400
LIMIT = 8
TIMEOUT_S = 240.0


@contextmanager
def server_that(act: Callable[[], bool], *at_requests: int) -> Iterator[SimulatedServer]:
    """Answers; at each of these requests, counted from 1, `act` is called, and at the next ones until it has acted."""
    num_requests, num_acts = 0, 0

    def answer(body: dict[str, Any]) -> str:
        nonlocal num_requests, num_acts
        num_requests += 1
        if num_acts < len(at_requests) and num_requests >= at_requests[num_acts] and act():
            num_acts += 1
        return expected_answer(body["messages"])

    with SimulatedServer(service_time_s=0.1, answer=answer) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pq.write_table(
        pa.table({"id": range(NUM_ROWS), "text": [f"row {number}" for number in range(NUM_ROWS)]}),
        tmp_path / "in.parquet",
    )
    return tmp_path


def command(server: SimulatedServer, folder: Path, actors: int) -> list[str]:
    words = ["run", "--input", folder / "in.parquet", "--output", folder / "out", "--base-url", server.base_url]
    words += ["--model", "sim", "--prompt", "Say {{ text }}", "--output-column", "x", "--rows-per-partition", "20"]
    words += ["--max-concurrent-requests", LIMIT, "--actors", actors, "--num-cpus-per-actor", "0.5", "--show-rows", "0"]
    return [sys.executable, "-m", "nemo_llm_stage", *map(str, words)]


def start(server: SimulatedServer, folder: Path, cluster: RayCluster, actors: int) -> subprocess.Popen[str]:
    env = {**cluster.env, "RAY_ADDRESS": cluster.address}
    return subprocess.Popen(command(server, folder, actors), env=env, stderr=subprocess.PIPE, text=True)


def finish(driver: subprocess.Popen[str]) -> None:
    _, stderr = driver.communicate(timeout=TIMEOUT_S)
    assert driver.returncode == 0, stderr[-3000:]


def assert_every_row_once(folder: Path) -> None:
    rows = pq.read_table(folder / "out").to_pylist()
    assert [row["id"] for row in rows] == list(range(NUM_ROWS))
    assert [row["x"] for row in rows] == [
        expected_answer([{"role": "user", "content": f"Say row {number}"}]) for number in range(NUM_ROWS)
    ]
    assert verify_output(str(folder / "out")).is_complete
    state = folder / ".out.nemo_llm_stage"
    assert [path.name for name in ("journal", "tmp") for path in (state / name).glob("*")] == []


@pytest.fixture(scope="module")
def head() -> Iterator[RayCluster]:
    """A cluster of one node with 2 CPUs."""
    with RayCluster(num_cpus=2) as cluster:
        yield cluster


@pytest.fixture
def cluster(head: RayCluster) -> RayCluster:
    """A head with 2 CPUs and two nodes with one each, whichever of them a test before has killed."""
    while len(head.node_numbers) < 3:
        head.add_node(num_cpus=1)
    return head


def test_a_node_that_is_killed_loses_no_row(folder: Path, cluster: RayCluster) -> None:
    """Raylet, workers and all, by `kill -9`; the run goes on with the others, and pays again for what was in flight."""
    killed: list[int] = []

    def kill_a_node() -> bool:
        for number in cluster.node_numbers[1:]:
            if workers := cluster.worker_pids(number):
                cluster.kill_node(number)
                killed.append(len(workers))
                return True
        return False

    with server_that(kill_a_node, 100) as server:
        finish(start(server, folder, cluster, actors=3))
        assert killed
        assert server.stats.num_repaid <= LIMIT * killed[0]
        assert server.stats.num_requests - NUM_ROWS <= (LIMIT + 1) * killed[0]
    assert_every_row_once(folder)


def test_a_driver_that_is_killed_is_followed_by_one_with_more_actors(
    folder: Path, cluster: RayCluster, shared_cluster: RayCluster
) -> None:
    """And that by one with fewer, on another cluster. Workers outlive their driver by a moment; what they do counts."""
    drivers: list[subprocess.Popen[str]] = []

    def kill_the_driver() -> bool:
        os.kill(drivers[-1].pid, signal.SIGKILL)
        return True

    with server_that(kill_the_driver, 100, 250) as server:
        for actors in (1, 3):
            drivers.append(start(server, folder, cluster, actors))
            assert drivers[-1].wait(TIMEOUT_S) == -signal.SIGKILL
            drivers[-1].communicate()
        drivers.append(start(server, folder, shared_cluster, actors=2))
        finish(drivers[-1])
        assert server.stats.num_repaid <= (1 + 3) * LIMIT
    assert_every_row_once(folder)


def test_workers_that_are_killed_lose_no_row(folder: Path, cluster: RayCluster) -> None:
    """All of them at once, twice."""
    killed: list[int] = []

    def kill_the_workers() -> bool:
        pids = [pid for number in cluster.node_numbers for pid in cluster.worker_pids(number)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        killed.extend(pids)
        return bool(pids)

    with server_that(kill_the_workers, 100, 250) as server:
        finish(start(server, folder, cluster, actors=2))
        assert len(killed) >= 2
        assert server.stats.num_repaid <= LIMIT * len(killed)
    assert_every_row_once(folder)
