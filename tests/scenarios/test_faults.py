"""Servers and disks that misbehave: rows are answered all the same, or the job says what is wrong."""

from __future__ import annotations

import errno
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clocks import FastClock, PatientClock

from nemo_llm_stage import AsyncHTTPClient, JobResult, LLMStage, RunError, run_job
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.job.prepare import prepare_job
from nemo_llm_stage.testing import (
    Fault,
    RecordedRequest,
    SimulatedServer,
    SimulatedServerProcess,
    expected_answer,
)
from nemo_llm_stage.worker.engine import RunStatus
from nemo_llm_stage.worker.in_process import LocalEngine
from nemo_llm_stage.worker.spec import spec_of

MIX: tuple[Any, ...] = (429, 500, 503, "drop", "reset", "half_body", "html", "abort", "null_content")


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(service_time_s=0.002) as server:
        yield server


def write_rows(folder: Path, num_rows: int) -> Path:
    path = folder / "in.parquet"
    if path.exists():  # a job that goes on wants the very same file
        return path
    pq.write_table(pa.table({"text": [f"row {number}." for number in range(num_rows)]}), path)
    return path


def make_stage(base_url: str, *, timeout: float = 30.0, **settings: Any) -> LLMStage:
    client = AsyncHTTPClient(base_url, max_concurrent_requests=16, base_delay=0.01, timeout=timeout, max_retries=3)
    options = {"model": "sim", "prompt": "Say {{ text }}", "output_column": "x"}
    return LLMStage(client=client, **options | settings)


def run(stage: LLMStage, folder: Path, num_rows: int, **settings: Any) -> JobResult:
    options: dict[str, Any] = {"rows_per_partition": 25, "engine": "local", "progress": False} | settings
    return run_job(stage=stage, input=write_rows(folder, num_rows), output=folder / "out", **options)


def answer_of(number: int) -> str:
    return expected_answer([{"role": "user", "content": f"Say row {number}."}])


def read(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / "out").glob("part-*")) for row in pq.read_table(path).to_pylist()]


def assert_all_answered(folder: Path, num_rows: int) -> None:
    rows = read(folder)
    assert [row["x_error"] for row in rows] == [None] * num_rows
    assert [row["x"] for row in rows] == [answer_of(number) for number in range(num_rows)]


def text_of(request: RecordedRequest) -> str:
    text: str = request.body["messages"][-1]["content"]
    return text


@pytest.mark.slow
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_server_that_fails_for_a_third_of_the_attempts(
    server: SimulatedServer, tmp_path: Path, is_stream: bool
) -> None:
    """In every way there is: each row gets its own answer, in few more attempts than the faults alone ask for."""
    kinds = [kind for kind in MIX if not (is_stream and kind == "null_content")]  # a stream of nothing is no null
    share = 0.3 / len(kinds)
    server.faults = [Fault(kind, rate=share, retry_after_s=0.02 if kind == 429 else None) for kind in kinds]
    counters = run(make_stage(server.base_url, generation_config={"stream": is_stream}), tmp_path, 600).counters
    assert_all_answered(tmp_path, 600)
    assert 1.2 * 600 < server.stats.num_requests <= 1.6 * 600
    assert counters.num_attempts == server.stats.num_requests
    assert counters.num_wasted_attempts == server.stats.num_requests - 600 - counters.num_rate_limited
    assert counters.num_rate_limited > 0
    assert server.stats.num_repaid == 0


def test_a_rate_limit_without_a_time_to_wait(server: SimulatedServer, tmp_path: Path) -> None:
    """No Retry-After: the wait is ours."""
    server.faults = [Fault(429, rate=0.3)]
    run(make_stage(server.base_url), tmp_path, 200)
    assert_all_answered(tmp_path, 200)
    assert server.stats.num_requests <= 1.6 * 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hang", "endless_stream"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_request_that_is_never_answered_is_asked_again(
    server: SimulatedServer, tmp_path: Path, kind: Any, is_stream: bool
) -> None:
    """After the timeout, and no healthy row waits for that."""
    server.faults = [Fault(kind, attempts=1, contains=f"row {number}.") for number in (3, 30, 77)]
    stage = make_stage(server.base_url, timeout=2.0, generation_config={"stream": is_stream})
    run(stage, tmp_path, 100)
    assert_all_answered(tmp_path, 100)
    requests = server.requests
    asked_again = min(request.arrived_monotonic_s for request in requests if request.attempt == 2)
    healthy = [request for request in requests if request.attempt == 1]
    assert len(healthy) == 100
    assert max(request.arrived_monotonic_s for request in healthy) < asked_again


def test_no_healthy_row_waits_behind_a_sleeping_one(server: SimulatedServer, tmp_path: Path) -> None:
    """More rows are told to wait than there are permits; the others are answered in the meantime."""
    server.faults = [Fault(429, attempts=1, contains=f"row {number}.", retry_after_s=1.0) for number in range(40)]
    stage = make_stage(server.base_url)
    stage.client.clock = PatientClock(lambda: server.stats.num_requests >= 200)
    run(stage, tmp_path, 200)
    assert_all_answered(tmp_path, 200)
    again = [request.arrived_monotonic_s for request in server.requests if request.attempt == 2]
    first = [request.arrived_monotonic_s for request in server.requests if request.attempt == 1]
    assert len(again) == 40
    assert max(first) < min(again)


@pytest.mark.parametrize("seconds", [1.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_a_server_that_is_gone_for_a_while_costs_no_row(
    server: SimulatedServer, tmp_path: Path, seconds: float
) -> None:
    """It dies with all connections in the middle of the run and is back later, by the client's clock."""
    server.faults = [Fault("exit", attempts=1, contains="row 40.", seconds=seconds / 10)]
    stage = make_stage(server.base_url)
    stage.client.clock = FastClock()
    run(stage, tmp_path, 200)
    assert_all_answered(tmp_path, 200)
    assert server.stats.num_duplicates <= 16 + 3 * 16  # in flight as it died, and sent while it was gone


@pytest.mark.slow
def test_a_rate_limit_without_end_makes_the_job_wait_and_say_so(server: SimulatedServer, tmp_path: Path) -> None:
    """No row fails; what the engine tells its monitor holds the server's words until it answers again."""
    server.faults = [Fault(429)]
    stage = make_stage(server.base_url)
    job = prepare_job(stage, write_rows(tmp_path, 20), tmp_path / "out", JobSettings(rows_per_partition=10))
    troubles: list[str] = []

    def watch(status: RunStatus) -> None:
        assert status.open.num_rows == 0 or not server.faults
        if status.trouble is not None:
            troubles.append(status.trouble)
            server.faults = []

    reports = list(LocalEngine().run(spec_of(job), job.pending, watch))
    assert troubles[0].startswith("rate_limit: HTTP 429")
    assert sum(report.counters.num_answered for report in reports) == 20


POISON = 13


@pytest.mark.slow
def test_a_row_that_kills_the_server_is_set_apart(tmp_path: Path) -> None:
    """The server dies a few times with all its connections; all other rows are answered."""
    with SimulatedServer(
        service_time_s=0.002, faults=[Fault("exit", contains=f"row {POISON}.", seconds=0.3)]
    ) as server:
        result = run(make_stage(server.base_url), tmp_path, 60)
        num_sent = sum(text_of(request) == f"Say row {POISON}." for request in server.requests)
    assert_set_apart(tmp_path, result)
    assert num_sent <= 4


@pytest.mark.slow
def test_a_row_that_kills_the_servers_process_is_set_apart(tmp_path: Path) -> None:
    """Something starts the process again each time, as Kubernetes does."""
    with (
        SimulatedServerProcess(service_time_s=0.002, faults=[Fault("exit", contains=f"row {POISON}.")]) as server,
        supervised(server) as exit_codes,
    ):
        result = run(make_stage(server.base_url), tmp_path, 60)
    assert_set_apart(tmp_path, result)
    assert 2 <= len(exit_codes) <= 4


def assert_set_apart(folder: Path, result: JobResult) -> None:
    rows = read(folder)
    assert [row["x"] for row in rows] == [answer_of(number) if number != POISON else None for number in range(60)]
    assert rows[POISON]["x_error"].startswith("quarantined: the server died")
    assert result.counters.errors == {"quarantined": 1}


@contextmanager
def supervised(server: SimulatedServerProcess) -> Iterator[list[int]]:
    """Start the server again whenever it has died; gives the exit codes seen so far."""
    codes: list[int] = []
    is_over = threading.Event()

    def supervise() -> None:
        while True:
            code = server.wait(timeout_s=None)
            if is_over.is_set():
                return
            codes.append(code)
            try:
                server.start()
            except RunError:
                if not is_over.is_set():  # else it was killed as it started
                    raise

    thread = threading.Thread(target=supervise)
    thread.start()
    try:
        yield codes
    finally:
        is_over.set()
        server.kill()
        thread.join()


@contextmanager
def small_disk(path: Path) -> Iterator[Callable[[str], None]]:
    """Mount a disk of 64 KiB at `path`; what is yielded mounts it again with other options."""
    path.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk takes root")

    mount("size=64k")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_a_full_disk_stops_the_job_and_room_lets_it_go_on(
    server: SimulatedServer, tmp_path: Path, output_format: str
) -> None:
    """What was answered and written before is not asked again."""
    with small_disk(tmp_path / "out") as mount:
        stage = make_stage(server.base_url)
        with pytest.raises(RunError, match=r"cannot write .*No space left on device.*run the same command again"):
            run(stage, tmp_path, 600, output_format=output_format)
        num_before = server.stats.num_requests
        assert num_before < 600
        mount("size=64m")
        run(stage, tmp_path, 600, output_format=output_format)
        assert server.stats.num_repaid <= 2 * 16  # in flight, and answers that came before the worker had stopped
        if output_format == "parquet":
            assert_all_answered(tmp_path, 600)


@pytest.mark.parametrize("place", ["journal.before_write", "commit.before_publish", "finish.before"])
def test_access_taken_away_stops_the_job_and_given_back_lets_it_go_on(
    server: SimulatedServer, tmp_path: Path, place: str
) -> None:
    """Wherever it is noticed first. To root nothing is forbidden, so the failpoint stands in for the system."""

    def refuse(name: str) -> None:
        if name == place:
            raise PermissionError(errno.EACCES, "Permission denied")

    stage = make_stage(server.base_url)
    failpoints.listen(refuse)
    try:
        with pytest.raises(RunError, match=r"cannot write .*Permission denied.*run the same command again"):
            run(stage, tmp_path, 300)
    finally:
        failpoints.listen(None)
    assert not (tmp_path / "out" / ".nemo_llm_stage" / "_SUCCESS").exists()
    run(stage, tmp_path, 300)
    assert_all_answered(tmp_path, 300)
    assert server.stats.num_repaid <= 2 * 16  # in flight, and answers that came before the worker had stopped


def test_files_that_may_not_grow_stop_the_job(server: SimulatedServer, tmp_path: Path) -> None:
    """A quota, as it were: the journal's write is cut in the middle of a line."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(RunError, match=r"cannot write the journal .*File too large"):
            run(make_stage(server.base_url), tmp_path, 200, rows_per_partition=200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run(make_stage(server.base_url), tmp_path, 200, rows_per_partition=200)
    assert_all_answered(tmp_path, 200)
    assert server.stats.num_repaid <= 2 * 16  # in flight, and answers that came before the worker had stopped
