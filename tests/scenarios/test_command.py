"""What a person at the command line sees of faults: what cannot succeed ends at once, what may pass is waited for."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from nemo_llm_stage.cli import main
from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer

NUM_ROWS = 200
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(service_time_s=0.005) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(NUM_ROWS)]}), tmp_path / "in.parquet")
    return tmp_path


def command(base_url: str, folder: Path, *more: str) -> list[str]:
    words = ["run", "--input", str(folder / "in.parquet"), "--output", str(folder / "out"), "--base-url", base_url]
    words += ["--prompt", "Say {{ text }}", "--output-column", "x", "--rows-per-partition", "20", "--show-rows", "0"]
    words += ["--model", "sim", "--max-concurrent-requests", "8", "--base-delay", "0.01"]
    return [sys.executable, "-m", "nemo_llm_stage", *words, *(more or ("--engine", "local"))]


def run(words: list[str], **settings: Any) -> tuple[int, str]:
    result = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False, **settings)
    return result.returncode, result.stderr


def invoke(words: list[str]) -> tuple[int, str]:
    """The same in this process."""
    result = CliRunner().invoke(main, words[3:])
    return result.exit_code, result.stderr


def assert_all_answered(folder: Path) -> None:
    assert pq.read_table(folder / "out").column("x").to_pylist() == [
        expected_answer([{"role": "user", "content": f"Say row {number}"}]) for number in range(NUM_ROWS)
    ]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, r"error: HTTP 401"),
        (403, r"error: HTTP 403"),
        (404, r"error: HTTP 404"),
        (400, r"the server refused the first 2\d rows and answered none; the last with: HTTP 400"),
        (422, r"the server refused the first 2\d rows and answered none; the last with: HTTP 422"),
    ],
)
def test_a_server_that_refuses_everything_ends_the_run(
    server: SimulatedServer, folder: Path, status: int, words: str
) -> None:
    """After a few requests, with its own words; nothing is committed."""
    server.faults = [Fault(status)]
    code, said = invoke(command(server.base_url, folder))
    assert (code, bool(re.search(words, said))) == (1, True), said
    assert "Traceback" not in said
    assert server.stats.num_requests < 60
    assert not list(folder.glob("out/part-*"))


@pytest.mark.parametrize(
    ("base_url", "words"),
    [("http://no-such-host.invalid/v1", "no-such-host.invalid"), ("http://127.0.0.1:1/v1", "127.0.0.1:1")],
)
def test_a_server_that_cannot_be_reached_ends_the_run(folder: Path, base_url: str, words: str) -> None:
    """Before anything is written."""
    code, said = invoke(command(base_url, folder))
    assert (code, words in said) == (1, True), said
    assert "Traceback" not in said
    assert not (folder / ".out.nemo_llm_stage" / "job.json").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_server_that_refuses_everything_ends_the_run_on_ray_too(server: SimulatedServer, folder: Path) -> None:
    """With the same words and code."""
    server.faults = [Fault(400)]
    code, said = run(command(server.base_url, folder, "--engine", "ray"))
    assert code == 1
    assert re.search(r"the server refused the first 2\d rows", said)
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("retry_after_s", [None, 0.1])
def test_a_rate_limit_without_end_is_waited_for_and_told(
    server: SimulatedServer, folder: Path, retry_after_s: float | None
) -> None:
    """No row fails, however long it takes: the server answers again only after the run has said that it waits."""
    server.faults = [Fault(429, retry_after_s=retry_after_s)]
    with subprocess.Popen(command(server.base_url, folder), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "event=outage_begins" in line and "429" in line)
        server.faults = []
        rest = process.stderr.read()
    assert process.returncode == 0, said + rest
    assert_all_answered(folder)


def obey_permissions() -> None:
    """Take from this process, even root's, the right to write what it must not."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_permission_lost_in_mid_run_stops_the_job_and_given_back_lets_it_go_on(
    folder: Path, output_format: str
) -> None:
    """The folders are made read-only after a hundred answers."""
    more = ("--engine", "local", "--output-format", output_format)
    num_answers = 0

    def answer(body: dict[str, Any]) -> str:
        nonlocal num_answers
        num_answers += 1
        if num_answers == 100:
            set_mode(folder / "out", 0o555)
        return expected_answer(body["messages"])

    with SimulatedServer(service_time_s=0.005, answer=answer) as server:
        words = command(server.base_url, folder, *more)
        code, said = run(words, preexec_fn=obey_permissions)
        set_mode(folder / "out", 0o755)
        assert (code, "Traceback" in said) == (1, False), said
        assert "cannot write" in said
        assert "Permission denied" in said
        assert run(words)[0] == 0
        assert server.stats.num_repaid <= 2 * 8
    assert len(list((folder / "out").glob("part-*"))) == 10


def set_mode(root: Path, mode: int) -> None:
    for path, _, _ in os.walk(root):
        with suppress(FileNotFoundError):
            Path(path).chmod(mode)
