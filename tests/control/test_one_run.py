"""One run at a time: the second one pays nothing, a dead one is taken over, and everybody can see who is there."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from slow_job import invoke

from nemo_llm_stage import RunError
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.job.state import read_state
from nemo_llm_stage.testing import Fault


@pytest.mark.slow
def test_a_second_run_is_refused_and_told_who_is_there(slow_job: Any) -> None:
    """It sends nothing, and its message says how to watch and how to take over."""
    first = slow_job.start()
    slow_job.wait_until_running()
    second = slow_job.start()
    output, _ = second.communicate(timeout=40)
    assert second.returncode == 2, output
    for words in (f"process {first.pid} on ", "last seen", "status", "--watch", "--takeover"):
        assert words in output
    assert first.poll() is None
    assert len({request.body["messages"][0]["content"] for request in slow_job.server.requests}) == len(
        slow_job.server.requests
    )


@pytest.mark.slow
def test_a_killed_run_is_seen_as_killed_and_taken_over_by_itself(slow_job: Any) -> None:
    """At once, because its process is gone; no row is paid for twice but those in flight."""
    first = slow_job.start(num_rows=100)
    slow_job.wait_until_running()
    first.send_signal(signal.SIGKILL)
    first.wait()
    state = slow_job.state()
    assert state["state"] == "killed"
    assert not state["is_live"]
    text = invoke("status", slow_job.output).stdout
    assert "stopped at " in text
    assert "nemo-llm-stage run --input" in text
    second = slow_job.start(num_rows=100)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0, output
    assert slow_job.state()["state"] == "finished"
    assert slow_job.server.stats.num_requests <= 100 + 4


@pytest.mark.slow
def test_a_takeover_stops_the_first_run_and_goes_on(slow_job: Any) -> None:
    """The first ends cleanly and says why."""
    first = slow_job.start()
    slow_job.wait_until_running()
    second = slow_job.start("--takeover")
    output, _ = first.communicate(timeout=40)
    assert first.returncode == 1
    assert "has ordered this run to stop" in output
    state = slow_job.wait_until_running()
    assert state["process"]["pid"] == second.pid


@pytest.mark.slow
def test_a_run_that_hangs_loses_its_folder_and_stops_when_it_wakes_up(slow_job: Any) -> None:
    """It cannot answer, so its place is taken after a while."""
    first = slow_job.start()
    slow_job.wait_until_running()
    first.send_signal(signal.SIGSTOP)
    second = slow_job.start("--takeover")
    slow_job.wait_for(lambda state: state["holder"]["process"]["pid"] == second.pid)
    first.send_signal(signal.SIGCONT)
    output, _ = first.communicate(timeout=40)
    assert first.returncode == 1
    assert "another run has taken over" in output
    assert slow_job.state()["holder"]["process"]["pid"] == second.pid


@pytest.mark.slow
def test_verify_knows_a_live_job(slow_job: Any) -> None:
    """It is not complete yet, and nobody is told to run it again."""
    slow_job.start()
    slow_job.wait_until_running()
    result = invoke("verify", slow_job.output)
    assert result.exit_code == 1
    assert "a run is in progress" in result.stdout
    assert "run the job again" not in result.stdout


def test_status_of_a_finished_job(job: Any) -> None:
    """All of it, from the folder alone."""
    job.run()
    state = read_state(str(job.folder / "out"))
    assert (state.state, state.is_live, state.num_committed) == ("finished", False, state.num_partitions)
    assert state.status is not None
    assert state.status.counters.num_answered == 40
    assert state.status.process.pid == os.getpid()
    assert state.status.spending["num_requests"] == 40
    assert state.status.rows


def test_a_job_of_an_older_version_has_a_state(job: Any) -> None:
    """Without a status: from its files."""
    job.run()
    OutputFolder(str(job.folder / "out")).state.remove("status.json")
    result = invoke("status", job.folder / "out")
    assert result.exit_code == 0
    assert "finished" in result.stdout


def test_a_failed_run_says_why(job: Any) -> None:
    """And how to resume it."""
    job.server.faults = [Fault(400, contains="row 3")]
    with pytest.raises(RunError):
        job.run(max_failed_rows=1)
    result = invoke("status", job.folder / "out")
    assert "failed at " in result.stdout
    assert "max_failed_rows = 1" in result.stdout
    assert "the same job again, from Python" in result.stdout
