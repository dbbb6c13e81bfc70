"""Killed at any place, any number of times: every row comes out once, with its own answer, and is paid for once."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _crash import NUM_ROWS, Tally, check_output, crash_a_job, write_input
from _nursery import CrashJob, Nursery

from nemo_llm_stage import AsyncHTTPClient, ConfigError, LLMStage, retry_failed, run_job
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.dataset.file_stat import FileStat
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.gather import gather
from nemo_llm_stage.dataset.journal_stream import JournalStream, worker_folder
from nemo_llm_stage.dataset.ledger import Entry, LedgerWriter
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.testing import Fault, SimulatedServer, SimulatedServerProcess


@contextmanager
def listening(hook: failpoints.Hook) -> Iterator[None]:
    failpoints.listen(hook)
    try:
        yield
    finally:
        failpoints.listen(None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"action": "run"},
        {"action": "run", "actors": 3, "rows_per_partition": 30},
        {"action": "run", "rows_per_partition": 30, "num_documents": 5},
        {"action": "run", "output_format": "jsonl"},
        {"action": "retry", "keep_raw": True},
        {"action": "retry", "output_format": "jsonl"},
        {"action": "restart", "keep_raw": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_job_survives_any_number_of_deaths(
    nursery: Nursery, crash_server: SimulatedServerProcess, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """At places by chance; what is asked again was in flight at a death."""
    tally, rng = Tally(), random.Random(7)
    crash_a_job(nursery, crash_server, tmp_path / "job", rng, tally, max_crashes=6, **settings)
    assert tally.num_crashes > 0
    assert tally.is_clean, tally


@pytest.mark.slow
def test_a_job_with_a_slow_server_survives_any_number_of_deaths(
    nursery: Nursery, crash_server: SimulatedServerProcess, tmp_path: Path
) -> None:
    """While rows go from its worker to others, and some are sent a second time."""
    tally, rng = Tally(), random.Random(7)
    settings: dict[str, Any] = {"action": "run", "actors": 3, "rows_per_partition": 30}
    with SimulatedServerProcess(service_time_s=1.5) as slow:
        for number in range(2):
            folder = tmp_path / str(number)
            crash_a_job(nursery, crash_server, folder, rng, tally, max_crashes=4, slow_url=slow.base_url, **settings)
    assert tally.num_crashes > 0
    assert tally.is_clean, tally


def test_every_failpoint_is_on_the_way(tmp_path: Path) -> None:
    """A run, a retry, a restart and more input pass all of them."""
    reached: set[str] = set()
    write_input(tmp_path, 20)
    with SimulatedServer(faults=[Fault(400, contains="bad")]) as server, listening(reached.add):
        for output in (str(tmp_path / "out"), f"memory://{tmp_path}/out"):

            def stage(prompt: str = "Say {{ text }}") -> LLMStage:
                client = AsyncHTTPClient(server.base_url, max_concurrent_requests=4)
                return LLMStage(client=client, model="sim", prompt=prompt, output_column="x")

            options: dict[str, Any] = {"input": tmp_path / "in.parquet", "output": output, "max_failed_rows": None}
            settings: dict[str, Any] = {"engine": "local", "progress": False, "actors": 2, "flush_interval": 0.001}
            run_job(stage=stage(), **options, **settings)
            retry_failed(stage=stage(), output=output, **settings)
            run_job(stage=stage("Tell {{ text }}"), restart=True, **options, **settings)
            more = tmp_path / f"more{len(reached)}.parquet"
            shutil.copy(tmp_path / "in.parquet", more)
            run_job(stage=stage("Tell {{ text }}"), **options | {"input": [tmp_path / "in.parquet", more]}, **settings)
        with LedgerWriter(Folder(f"memory://{tmp_path}/many"), flush_interval_s=0.0) as ledger:
            while "ledger.after_merge" not in reached:
                ledger.add([Entry("part-00000000.parquet", "job", FileStat(1), Counters())])
        state = Folder(f"memory://{tmp_path}/stream")
        stream = JournalStream(worker_folder(state, 0), flush_interval_s=0.001)
        while "stream.after_merge" not in reached:
            stream.write("1-a", b"part-00000000 1-a x\n")
            stream.flush()
        gather(state, 0)
    assert reached == set(failpoints.FAILPOINTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", ["journal.before_open", "journal.before_write", "write.before", "commit.before_publish"]
)
def test_a_worker_that_wakes_up_late_changes_nothing(
    nursery: Nursery, another: Nursery, crash_server: SimulatedServerProcess, tmp_path: Path, place: str
) -> None:
    """It sleeps while another takes its place and does the whole job, and then goes on as if nothing was."""
    write_input(tmp_path, NUM_ROWS)
    job = CrashJob(crash_server.base_url, str(tmp_path))
    pid = nursery.attempt(job, place, is_stopped=True)["pid"]
    assert another.attempt(replace(job, takeover=True))["code"] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out/part-*")}
    assert nursery.wake(pid)["code"] in (0, 1)  # it may see in time that its place is taken
    tally = Tally()
    check_output(job, NUM_ROWS, tally)
    assert tally.is_clean, tally
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out/part-*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
@pytest.mark.parametrize("place", ["commit.before_publish", "commit.after_publish", "retire.before"])
def test_the_late_file_of_a_job_thrown_away_is_replaced(
    nursery: Nursery,
    another: Nursery,
    crash_server: SimulatedServerProcess,
    tmp_path: Path,
    output_format: str,
    place: str,
) -> None:
    """
    Its worker wakes up after another prompt has taken the folder over.

    It commits first or has committed; the new job's rows take its place, and the answers that the new job has
    journaled stay until they are committed.
    """
    write_input(tmp_path, NUM_ROWS)
    old = CrashJob(crash_server.base_url, str(tmp_path), output_format=output_format)
    new = replace(old, prompt="Tell", action="restart")
    old_pid = nursery.attempt(old, place, is_stopped=True)["pid"]
    crash_server.reset()
    new_pid = another.attempt(replace(new, takeover=True), "commit.before_publish", is_stopped=True)["pid"]
    assert nursery.wake(old_pid)["code"] == 1
    assert another.wake(new_pid)["code"] == 0
    tally = Tally()
    check_output(new, NUM_ROWS, tally)
    assert tally.is_clean, tally
    assert crash_server.stats.num_repaid == 0


@pytest.mark.slow
def test_a_job_thrown_away_leaves_the_counts_of_the_next_one(
    nursery: Nursery, another: Nursery, crash_server: SimulatedServerProcess, tmp_path: Path
) -> None:
    """It fell asleep between a file and its counts, and wakes up when another's file and counts stand there."""
    write_input(tmp_path, NUM_ROWS)
    old = CrashJob(crash_server.base_url, str(tmp_path), output_format="jsonl")
    new = replace(old, prompt="Tell", action="restart")
    old_pid = nursery.attempt(old, "commit.before_summary", is_stopped=True)["pid"]
    assert another.attempt(replace(new, takeover=True))["code"] == 0
    counts = {path.name: path.read_bytes() for path in tmp_path.glob(".out.nemo_llm_stage/commits/*")}
    assert nursery.wake(old_pid)["code"] == 1
    assert {path.name: path.read_bytes() for path in tmp_path.glob(".out.nemo_llm_stage/commits/*")} == counts
    crash_server.reset()
    assert another.attempt(replace(new, action="run"))["code"] == 0
    assert crash_server.stats.num_requests == 0


@pytest.mark.slow
@pytest.mark.parametrize("place", ["retire.before", "finish.before"])
def test_a_job_thrown_away_at_its_end_does_not_mark_the_next_one(
    nursery: Nursery, another: Nursery, crash_server: SimulatedServerProcess, tmp_path: Path, place: str
) -> None:
    """Its rows were whole as it fell asleep; those of the job that has the folder as it wakes up are not."""
    write_input(tmp_path, NUM_ROWS)
    old = CrashJob(crash_server.base_url, str(tmp_path), rows_per_partition=NUM_ROWS)  # nothing is left to run
    new = replace(old, prompt="Tell", action="restart")
    old_pid = nursery.attempt(old, place, is_stopped=True)["pid"]
    crash_server.reset()
    new_pid = another.attempt(replace(new, takeover=True), "commit.before_publish", is_stopped=True)["pid"]
    assert nursery.wake(old_pid)["code"] == 1
    assert not OutputFolder(str(tmp_path / "out"), "parquet").is_complete()
    assert another.wake(new_pid)["code"] == 0
    tally = Tally()
    check_output(new, NUM_ROWS, tally)
    assert tally.is_clean, tally
    assert crash_server.stats.num_repaid == 0


@pytest.mark.slow
@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_the_late_file_of_a_job_thrown_away_is_made_anew_by_the_next_run(
    nursery: Nursery, another: Nursery, crash_server: SimulatedServerProcess, tmp_path: Path, output_format: str
) -> None:
    """Where the new job died before it came to the file: nothing that it had answered is sent again."""
    write_input(tmp_path, NUM_ROWS)
    old = CrashJob(crash_server.base_url, str(tmp_path), output_format=output_format)
    new = replace(old, prompt="Tell", action="restart")
    old_pid = nursery.attempt(old, "commit.before_publish", is_stopped=True)["pid"]
    crash_server.reset()
    died = another.attempt(replace(new, takeover=True), "commit.before_publish")
    assert died["code"] == -signal.SIGKILL
    nursery.wake(old_pid)
    assert nursery.attempt(replace(new, action="run"))["code"] == 0
    tally = Tally()
    check_output(new, NUM_ROWS, tally)
    assert tally.is_clean, tally
    assert crash_server.stats.num_repaid <= died["in_flight"]  # whose answers may have come as it died


def test_a_failpoint_that_is_none_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(ConfigError, match=r"no failpoint is called 'comit'.*commit\.before_publish"):
        failpoints.hook_of("comit=0.5")
