"""Whole jobs from and to a real S3 server: every row once, resumed after a kill, with writers that race."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from nemo_llm_stage import AsyncHTTPClient, InputError, JobResult, LLMStage, RunError, retry_failed, run_job
from nemo_llm_stage.cli import main
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.run import verify_output
from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer

s3fs = pytest.importorskip("s3fs", reason="the S3 tests need s3fs, of the [dev] extra")

NUM_ROWS = 30


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(service_time_s=0.01) as server:
        yield server


@pytest.fixture
def bucket(make_bucket: Callable[..., str]) -> str:
    """With thirty rows under ``in``: twenty in a Parquet file, ten in a JSONL file."""
    url = make_bucket()
    folder = Folder(f"{url}/in")
    rows = [{"id": number, "text": f"row {number}"} for number in range(NUM_ROWS)]
    with folder.fs.open(folder.path("a.parquet"), "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows[:20]), file)
    folder.fs.pipe_file(folder.path("b.jsonl"), "".join(json.dumps(row) + "\n" for row in rows[20:]).encode())
    return url


def run(server: SimulatedServer, bucket: str, prompt: str = "Say {{ text }}", **settings: Any) -> JobResult:
    options: dict[str, Any] = {"input": f"{bucket}/in", "output": f"{bucket}/out", "rows_per_partition": 10}
    stage = make_stage(server, prompt)
    return run_job(stage=stage, **options | {"engine": "local", "progress": False, "max_failed_rows": None} | settings)


def make_stage(server: SimulatedServer, prompt: str = "Say {{ text }}") -> LLMStage:
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=8, base_delay=0.01)
    return LLMStage(client=client, model="sim", prompt=prompt, output_column="x")


def command(server: SimulatedServer, bucket: str, *more: str) -> list[str]:
    job = [sys.executable, "-m", "nemo_llm_stage", "run", "--engine", "local", "--input", f"{bucket}/in"]
    job += ["--output", f"{bucket}/out", "--rows-per-partition", "10", "--base-url", server.base_url, "--model", "sim"]
    return [*job, "--prompt", "Say {{ text }}", "--output-column", "x", "--max-concurrent-requests", "8", *more]


def read(bucket: str) -> list[dict[str, Any]]:
    folder = Folder(f"{bucket}/out")
    rows: list[dict[str, Any]] = []
    for name in sorted(name for name in folder.names() if name.startswith("part-")):
        if name.endswith(".jsonl"):
            rows += map(json.loads, folder.read(name).splitlines())
        else:
            rows += pq.read_table(pa.BufferReader(folder.read(name))).to_pylist()
    return rows


def assert_all_answered(bucket: str, word: str = "Say") -> None:
    rows = read(bucket)
    assert [row["id"] for row in rows] == list(range(NUM_ROWS))
    assert [row["x"] for row in rows] == [
        expected_answer([{"role": "user", "content": f"{word} row {number}"}]) for number in range(NUM_ROWS)
    ]
    assert verify_output(f"{bucket}/out").is_complete
    assert Folder(f"{bucket}/out").exists(".nemo_llm_stage/_SUCCESS")
    assert all(not Folder(f"{bucket}/.out.nemo_llm_stage/{name}").folders() for name in ("journal", "tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_every_row_comes_out_once(server: SimulatedServer, bucket: str, output_format: str) -> None:
    """Running again asks nothing."""
    run(server, bucket, output_format=output_format)
    assert_all_answered(bucket)
    run(server, bucket, output_format=output_format)
    assert server.stats.num_requests == NUM_ROWS


@pytest.mark.slow
@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_failed_rows_can_be_asked_again(server: SimulatedServer, bucket: str, output_format: str) -> None:
    """Only those; the files are replaced as a whole."""
    server.faults = [Fault(400, contains="row 1")]  # 1 and 10 to 19
    run(server, bucket, output_format=output_format)
    server.faults = []
    result = retry_failed(stage=make_stage(server), output=f"{bucket}/out", engine="local", progress=False)
    assert result.counters.num_failed == 0
    assert_all_answered(bucket)
    assert server.stats.num_requests == NUM_ROWS + 11


@pytest.mark.slow
def test_a_restart_uses_the_raw_answers_that_were_kept(server: SimulatedServer, bucket: str) -> None:
    """Moved beside the output; a new prompt asks anew."""
    run(server, bucket, keep_raw=True)
    run(server, bucket, keep_raw=True, restart=True)
    assert server.stats.num_requests == NUM_ROWS
    run(server, bucket, "Tell {{ text }}", restart=True)
    assert_all_answered(bucket, "Tell")


@pytest.mark.slow
def test_a_changed_input_is_named_and_refused(server: SimulatedServer, bucket: str) -> None:
    """By its etag."""
    run(server, bucket)
    folder = Folder(f"{bucket}/in")
    folder.fs.pipe_file(folder.path("b.jsonl"), b'{"id": 20, "text": "another"}\n')
    with pytest.raises(InputError, match=r"b\.jsonl has changed"):
        run(server, bucket)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        "stream.after_put",
        "commit.before_publish",
        "commit.after_publish",
        "ledger.after_put",
        "finish.before",
    ],
)
def test_a_killed_job_goes_on(server: SimulatedServer, bucket: str, place: str) -> None:
    """Answers that had been put into a segment, or committed, are not paid for again."""
    env = {**os.environ, failpoints.VARIABLE: place}
    killed = subprocess.run(command(server, bucket, "--flush-interval", "0.05"), env=env, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    num_sent = server.stats.num_requests
    num_kept = len(answers_kept(bucket))
    assert num_kept > 0 or place == "commit.before_publish"  # which may come before the first segment
    if num_kept > 10:  # dies while the answers are sorted, too
        env[failpoints.VARIABLE] = "gather.between"
        subprocess.run(command(server, bucket), env=env, capture_output=True, check=False)
    run(server, bucket)
    assert_all_answered(bucket)
    assert server.stats.num_requests - NUM_ROWS <= num_sent - num_kept


def answers_kept(bucket: str) -> set[str]:
    """What the journals and the committed files hold together."""
    answers = {row["x"] for row in read(bucket)}
    for kind in ("journal", "streams"):
        journals = Folder(f"{bucket}/.out.nemo_llm_stage/{kind}")
        for stem in journals.folders():
            for name in journals.names(stem):
                lines = journals.read(f"{stem}/{name}").splitlines()
                answers |= {json.loads(line[line.index(b"{") :])["t"][0] for line in lines}
    return answers


@pytest.mark.slow
def test_of_two_drivers_at_once_one_gives_every_row_once(server: SimulatedServer, bucket: str) -> None:
    """Where a dead run left its claim: the other one is refused, or stops when it sees whose the folder is."""
    env = {**os.environ, failpoints.VARIABLE: "record.after"}
    subprocess.run(command(server, bucket), env=env, capture_output=True, check=False)  # claims the folder, and dies
    drivers = [subprocess.Popen(command(server, bucket), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [driver.communicate()[1] for driver in drivers]
    codes = {driver.returncode: words for driver, words in zip(drivers, said, strict=True)}
    assert 0 in codes, said
    assert "another run of this job" in codes.get(2, "another run of this job")
    assert "another run has taken over" in codes.get(1, "another run has taken over")
    assert codes.keys() <= {0, 1, 2}, said
    assert_all_answered(bucket)


@pytest.mark.slow
def test_a_second_driver_is_refused_or_takes_over(bucket: str) -> None:
    """It names who runs the job; the one that takes over waits for the other's end, and gives the other rows."""
    is_asked, is_free = threading.Event(), threading.Event()

    def service_time_s(body: dict[str, Any]) -> float:
        is_asked.set()
        return 0.0 if is_free.is_set() else 15.0

    with SimulatedServer(service_time_s=service_time_s) as server:
        first = subprocess.Popen(command(server, bucket, "--grace-period", "1"), stderr=subprocess.PIPE, text=True)
        assert is_asked.wait(60)
        refused = subprocess.run(command(server, bucket), stderr=subprocess.PIPE, text=True, check=False)
        assert refused.returncode == 2, refused.stderr
        assert f"process {first.pid} on " in refused.stderr
        successor = subprocess.Popen(command(server, bucket, "--takeover"), stderr=subprocess.PIPE, text=True)
        _, said = first.communicate()
        assert (first.returncode, "has ordered this run to stop" in said) == (1, True), said
        is_free.set()
        _, said = successor.communicate()
        assert successor.returncode == 0, said
    assert_all_answered(bucket)


@pytest.mark.parametrize(
    ("options", "env"),
    [
        ({"--output": "s3://no-such-bucket/out"}, {}),
        ({"--input": "s3://no-such-bucket/in"}, {}),
        ({}, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}),
        ({}, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}),
    ],
    ids=["no-output-bucket", "no-input-bucket", "gone", "no-credentials"],
)
@pytest.mark.parametrize("is_local_input", [False, True])
def test_a_store_that_cannot_be_used_is_one_message(
    server: SimulatedServer,
    bucket: str,
    tmp_path: Path,
    options: dict[str, str],
    env: dict[str, str],
    is_local_input: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No traceback of its library; nothing is asked."""
    (tmp_path / "in.jsonl").write_text('{"id": 1, "text": "row 1"}\n')
    local = {"--input": str(tmp_path / "in.jsonl")} if is_local_input and "--input" not in options else {}
    more = [word for pair in (options | local).items() for word in pair]
    job = command(server, bucket, *more)
    if "--input" in more:  # it may be given more than once
        place = job.index("--input")
        del job[place : place + 2]
    for name, value in {**env, "AWS_MAX_ATTEMPTS": "1", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # or the environment would not be looked at
    result = CliRunner().invoke(main, job[3:])
    s3fs.S3FileSystem.clear_instance_cache()
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert server.stats.num_requests == 0


@pytest.mark.slow
def test_a_store_that_refuses_in_mid_run_stops_the_job(server: SimulatedServer, bucket: str) -> None:
    """With its words, and a way on."""

    def refuse(name: str) -> None:
        if name == "commit.before_publish":
            raise PermissionError("Access Denied")

    failpoints.listen(refuse)
    try:
        with pytest.raises(RunError, match=r"cannot write s3://.*Access Denied.*run the same command again"):
            run(server, bucket)
    finally:
        failpoints.listen(None)
    run(server, bucket)
    assert_all_answered(bucket)


def test_a_finished_job_is_run_again_with_one_listing_and_few_calls(
    server: SimulatedServer, bucket: str, s3_server: str
) -> None:
    run(server, bucket)
    calls(s3_server)
    assert run(server, bucket).this_run.num_rows == 0
    asked = calls(s3_server)
    assert asked["LIST out"] == 1
    assert asked.total() <= 24, asked


def test_verify_reads_each_file_once_and_the_record_once(server: SimulatedServer, bucket: str, s3_server: str) -> None:
    run(server, bucket)
    calls(s3_server)
    assert verify_output(f"{bucket}/out").is_complete
    asked = calls(s3_server)
    assert asked["GET out"] == 3, asked
    assert asked.total() <= 15, asked


def calls(s3_server: str) -> Counter[str]:
    """The calls since the last look, by kind and folder."""
    with urllib.request.urlopen(f"{s3_server}/calls") as response:
        return Counter(json.load(response))
