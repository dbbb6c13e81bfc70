"""Ctrl-C and SIGTERM at the command line: once finishes what is in flight, twice stops at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from ray_cluster import RayCluster

from nemo_llm_stage.cli import main
from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer

NUM_ROWS = 60
MAX_IN_FLIGHT = 4


class BusyServer(SimulatedServer):
    """Answers after 0.2 s; `is_busy` is set once it has begun to answer so many requests that files are committed."""

    def __init__(self) -> None:
        self.is_busy = threading.Event()
        self._num_begun = 0
        super().__init__(service_time_s=0.2, answer=self._answer)

    def _answer(self, body: dict[str, Any]) -> str:
        self._num_begun += 1
        if self._num_begun == 17:
            self.is_busy.set()
        return expected_answer(body["messages"])


@pytest.fixture
def server() -> Iterator[BusyServer]:
    with BusyServer() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(NUM_ROWS)]}), tmp_path / "in.parquet")
    return tmp_path


def arguments(server: BusyServer, folder: Path, *more: str) -> list[str]:
    words = ["run", "--input", str(folder / "in.parquet"), "--output", str(folder / "out")]
    words += ["--base-url", server.base_url, "--model", "sim", "--prompt", "{{ text }}", "--output-column", "x"]
    words += ["--rows-per-partition", "10", "--max-concurrent-requests", str(MAX_IN_FLIGHT), "--show-rows", "0"]
    return [*words, *(more or ("--engine", "local"))]


def start(server: BusyServer, folder: Path, *more: str, **settings: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nemo_llm_stage", *arguments(server, folder, *more)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **settings)


def interrupt(process: subprocess.Popen[str], server: BusyServer, *signums: int) -> str:
    """
    Send the signals once the server has answered a partition's rows; return what the process said.

    Two equal signals at the same instant may arrive as one.
    """
    assert server.is_busy.wait(120)
    for signum in signums:
        process.send_signal(signum)
    _, said = process.communicate(timeout=120)
    assert "Traceback" not in said
    return said


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_finishes_what_is_in_flight(server: BusyServer, folder: Path, signum: int, code: int) -> None:
    """No request is broken off, and the second run sends only what is left."""
    process = start(server, folder)
    said = interrupt(process, server, signum)
    assert (process.returncode, server.stats.num_aborted) == (code, 0)
    assert "run the same command again to resume" in said
    assert len(list((folder / "out").glob("part-*"))) >= 1
    again = CliRunner().invoke(main, arguments(server, folder))
    assert again.exit_code == 0, again.output
    assert (server.stats.num_requests, server.stats.num_duplicates) == (NUM_ROWS, 0)
    assert pq.read_table(folder / "out").num_rows == NUM_ROWS


@pytest.mark.slow
def test_a_second_signal_stops_at_once(server: BusyServer, folder: Path) -> None:
    """A request that is never answered does not hold it up."""
    server.faults = [Fault("hang", contains="row 12")]
    process = start(server, folder, "--engine", "local", "--grace-period", "1000")
    said = interrupt(process, server, signal.SIGINT, signal.SIGTERM)
    assert (process.returncode, "stopped at once" in said) == (130, True), said


@pytest.mark.slow
def test_the_grace_period_bounds_the_wait(server: BusyServer, folder: Path) -> None:
    """A request that is never answered is given up."""
    server.faults = [Fault("hang", contains="row 12")]
    process = start(server, folder, "--engine", "local", "--grace-period", "2")
    interrupt(process, server, signal.SIGTERM)
    assert process.returncode == 143


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("signums", "is_own_ray"),
    [((signal.SIGINT,), True), ((signal.SIGINT, signal.SIGTERM), False), ((signal.SIGTERM,), False)],
)
def test_signals_end_a_run_on_ray_in_order(
    server: BusyServer, folder: Path, shared_cluster: RayCluster, signums: tuple[int, ...], is_own_ray: bool
) -> None:
    """
    With the same exit codes and without a traceback; a second run in this process resumes.

    A second signal breaks off what is in flight: the server may just have answered it.
    """
    env = dict(os.environ) if is_own_ray else {**shared_cluster.env, "RAY_ADDRESS": shared_cluster.address}
    process = start(server, folder, "--engine", "ray", "--actors", "2", env=env)
    said = interrupt(process, server, *signums)
    assert process.returncode == 128 + signums[0], said
    again = CliRunner().invoke(main, arguments(server, folder))
    assert again.exit_code == 0, again.output
    assert server.stats.num_repaid <= (MAX_IN_FLIGHT if len(signums) > 1 else 0)
    assert pq.read_table(folder / "out").num_rows == NUM_ROWS
