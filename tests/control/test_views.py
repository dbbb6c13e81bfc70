"""What status, tail, failures and jobs show, on local disks and on other stores, and for runs that are gone."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from slow_job import invoke

from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.state.holder import is_running, new_holder, publish_holder, read_holder
from nemo_llm_stage.dataset.state.process import this_process
from nemo_llm_stage.dataset.state.status import read_status, write_status
from nemo_llm_stage.dataset.state.timeline import MAX_POINTS, Event, Timeline, read_timelines, write_timeline
from nemo_llm_stage.errors import ConfigError, InputError, RunStoppedError
from nemo_llm_stage.job.state import read_state
from nemo_llm_stage.report.page.render import report_page
from nemo_llm_stage.report.progress.displays import as_text
from nemo_llm_stage.report.summary import summary
from nemo_llm_stage.testing import Fault


def state_of(job: Any) -> Any:
    return OutputFolder(str(job.folder / "out")).state


def test_tail_shows_rows_with_their_answers(job: Any) -> None:
    """One line each; as JSON for programs."""
    job.run()
    assert "user: Say row " in invoke("tail", job.folder / "out").stdout
    lines = invoke("tail", job.folder / "out", "--json").stdout.splitlines()
    assert all(set(json.loads(line)) == {"at", "values", "errors", "request"} for line in lines)
    assert lines


def test_a_row_cannot_act_on_the_terminal(job: Any) -> None:
    """Answers are text."""
    job.run()
    status = read_status(state_of(job))
    assert status is not None
    rows = [{"at": status.updated_at, "values": {"x": "\x1b[2Jgone"}, "errors": {}}]
    write_status(state_of(job), replace(status, rows=rows))
    assert "\x1b" not in invoke("tail", job.folder / "out").stdout


def test_failures_are_grouped_by_the_servers_words(job: Any) -> None:
    """With places, and the commands that retry them."""
    job.server.faults = [Fault(400, contains="row 3"), Fault("content_filter", contains="row 1")]
    job.run(max_failed_rows=None)
    text = invoke("failures", job.folder / "out").stdout
    assert "11 x bad_request: HTTP 400" in text
    assert "11 x content_filter: " in text
    assert "part-00000000.parquet, row 2, column x" in text
    assert f"retry-failed {job.folder / 'out'} --kind bad_request" in text


def test_no_failures(job: Any) -> None:
    """Say so."""
    job.run()
    assert invoke("failures", job.folder / "out").stdout == "no row has failed.\n"


def test_jobs_below_a_folder_are_listed(job: Any) -> None:
    """With their states; other folders are ignored."""
    for name in ("a", "b/c"):
        job.run(output=job.folder / "jobs" / name)
    (job.folder / "jobs" / "other").mkdir()
    lines = invoke("jobs", job.folder / "jobs").stdout.splitlines()
    assert [line.split()[:4] for line in lines] == [
        [str(job.folder / "jobs" / "a"), "finished", "40", "of"],
        [str(job.folder / "jobs" / "b" / "c"), "finished", "40", "of"],
    ]


def test_status_needs_a_job(tmp_path: Path) -> None:
    """One message."""
    result = invoke("status", tmp_path)
    assert result.exit_code == 2
    assert "is not the output of a job" in result.stderr


@pytest.mark.slow
def test_a_status_is_kept_on_an_object_store(job: Any, make_bucket: Any) -> None:
    """The same commands, on S3."""
    url = f"{make_bucket()}/out"
    job.run(output=url)
    state = read_state(url)
    assert (state.state, state.num_committed) == ("finished", state.num_partitions)
    assert state.status is not None
    assert state.status.interval_s == 10
    assert invoke("status", url).exit_code == 0
    assert read_holder(OutputFolder(url).state) is None


@pytest.mark.slow
def test_a_run_on_another_machine_is_judged_by_its_heartbeat(job: Any) -> None:
    """A fresh one goes on, one that has stood still is dead."""
    job.run()
    state = state_of(job)
    elsewhere = replace(this_process(), host="elsewhere", machine="elsewhere/1")
    holder = replace(new_holder("run"), process=elsewhere)
    publish_holder(state, holder)
    assert is_running(state, holder)
    result = invoke("status", job.folder / "out")
    assert "starting" in result.stdout
    for minutes in (10, 10**5, -(10**5)):  # the first and the last may come from a clock that is off: they are watched
        started_at = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
        assert not is_running(state, replace(holder, started_at=started_at))


def test_a_run_that_died_on_another_machine_is_taken_over(job: Any) -> None:
    """Its heartbeat stands still."""
    with pytest.raises(RunStoppedError):
        job.run(max_requests=20)
    status, elsewhere = read_status(state_of(job)), replace(this_process(), machine="elsewhere/1")
    assert status is not None
    dead = replace(new_holder("run"), process=elsewhere, started_at="2026-01-01T00:00:00.000Z")
    publish_holder(state_of(job), dead)
    write_status(state_of(job), replace(status, run_id="run", updated_at="2026-01-01T00:01:00.000Z"))
    assert read_state(str(job.folder / "out")).state == "killed"
    assert job.run().counters.num_rows == 40
    assert read_holder(state_of(job)) is None


def test_a_process_id_that_was_given_away_again_is_no_run() -> None:
    """Another process has it, which started at another time."""
    assert this_process().is_alive()
    assert replace(this_process(), started="1").is_alive() is False
    assert replace(this_process(), pid=2**22 + 1).is_alive() is False
    assert replace(this_process(), machine="other").is_alive() is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"version": 1}', b'{"version": 99}', b"\xff\xfe"])
def test_a_damaged_status_is_told_and_stops_no_run(job: Any, damage: bytes) -> None:
    """The next run replaces it."""
    job.run()
    state = state_of(job)
    state.fs.pipe_file(state.path("status.json"), damage)
    assert "status.json" in invoke("status", job.folder / "out").stderr
    assert job.run(restart=True).counters.num_rows == 40
    assert invoke("status", job.folder / "out").exit_code == 0


def test_a_timeline_stays_small(tmp_path: Path) -> None:
    """However long the run: older points are thinned out, events in the middle go."""
    timeline = Timeline("2026-11-25T00:00:00.000Z")
    for second in range(50_000):
        timeline.add_point(second, second, 1.0, 4, 4, 0, 0.0)
    for number in range(2000):
        timeline.add_event("set", f"event {number}")
    assert MAX_POINTS // 2 <= len(timeline.points) <= MAX_POINTS
    assert timeline.points[0][0] == 0
    assert timeline.points[-1][0] > 49_000
    assert len(timeline.events) == 500
    assert timeline.events[-1].text == "event 1999"
    state = OutputFolder(str(tmp_path)).state
    write_timeline(state, "run", timeline)
    (read,) = read_timelines(state)
    assert (read.points, read.events) == (timeline.points, timeline.events)


def test_the_report_shows_a_run_over_time(job: Any) -> None:
    """Speed, load and limit; events as marks and as a list, escaped."""
    job.run()
    timeline = Timeline("2026-11-25T00:00:00.000Z")
    for second in range(0, 60, 2):
        timeline.add_point(second, 10 * second, 5.0 + second, min(8, second), 8, 0, 0.0)
    timeline.events.append(Event("2026-11-25T00:00:30.000Z", "pause", "paused </svg><script>alert(1)</script>"))
    timeline.events.append(Event("nonsense", "set", "x"))
    write_timeline(state_of(job), "run", timeline)
    page = report_page(str(job.folder / "out"))
    assert "Over time" in page
    assert page.count('<polyline class="line"') == 2
    assert page.count('<polyline class="limit"') == 1
    assert page.count('<line class="mark"') == 2
    assert "<script>alert(1)" not in page
    assert "paused &lt;/svg&gt;" in page


def test_a_run_that_was_killed_after_its_end_has_finished(job: Any) -> None:
    """Every row is accounted for; only the run's own file was left behind."""
    job.run()
    gone = replace(this_process(), pid=2**22, started="1")
    publish_holder(state_of(job), replace(new_holder("dead"), process=gone))
    state = read_state(str(job.folder / "out"))
    assert (state.state, state.is_live) == ("finished", False)


def test_gpu_hours_are_those_of_all_runs(job: Any) -> None:
    """At the end, in status, in the report and for programs; with their cost where there is a price."""
    gpus: dict[str, Any] = {"gpus": 3600, "gpu_price_per_hour": 2.0}  # an hour of GPUs a second
    with pytest.raises(RunStoppedError):
        job.run(max_requests=20, **gpus)
    first = read_status(state_of(job))
    assert first is not None
    result = job.run(**gpus)
    assert result.gpu_time.hours > first.spending["gpu_hours"] > 0
    assert result.gpu_time.cost == pytest.approx(2 * result.gpu_time.hours)
    values = json.loads(state_of(job).read("summary.json"))
    assert (values["gpu_hours"], values["gpu_cost"]) == pytest.approx((result.gpu_time.hours, result.gpu_time.cost))
    text = as_text(summary(result))
    assert "GPU-hours" in text
    assert "for the GPUs" in text
    assert " GPU-hours for $" in invoke("status", job.folder / "out").stdout
    assert "GPU-hours</span>" in report_page(str(job.folder / "out"))


def test_a_price_of_gpus_needs_their_number() -> None:
    """Nobody guesses it."""
    with pytest.raises(ConfigError, match="gpu_price_per_hour needs gpus"):
        JobSettings(gpu_price_per_hour=2.0)


def test_one_job_that_cannot_be_read_hides_no_other(job: Any) -> None:
    """And what `failures` says to run may be copied, also with a space in the path."""
    for name in ("a", "b b"):
        job.run(output=job.folder / "jobs" / name)
    (job.folder / "jobs" / ".a.nemo_llm_stage" / "job.json").write_text("{}")
    result = invoke("jobs", job.folder / "jobs")
    assert "damaged" in result.stderr
    assert len(result.stdout.splitlines()) == 1
    job.server.faults = [Fault(400, contains="row 3")]
    job.run(output=job.folder / "c c", max_failed_rows=None)
    assert f"retry-failed '{job.folder / 'c c'}'" in invoke("failures", job.folder / "c c").stdout


def test_what_the_system_refuses_is_no_traceback(job: Any) -> None:
    """For instance a folder that is a loop of links."""
    (job.folder / "loop").symlink_to(job.folder / "loop")
    for command in ("status", "jobs", "verify"):
        result = invoke(command, job.folder / "loop" / "out")
        assert isinstance(result.exception, SystemExit), command
        assert "error: " in result.output or "no job" in result.output


def test_who_stops_watching_is_not_told_that_the_job_stops(job: Any) -> None:
    """Ctrl-C ends the command alone."""
    job.run()
    publish_holder(state_of(job), new_holder("run"))
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for command in (("status", "--watch"), ("tail",)):
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            result = invoke(command[0], job.folder / "out", *command[1:])
            assert (result.exit_code, result.stderr) == (130, "no longer shown; a run that is in progress goes on.\n")
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_finished_job_that_lost_a_file_is_not_finished(job: Any) -> None:
    """The same command makes the file again."""
    job.run()
    next((job.folder / "out").glob("part-*")).unlink()
    assert read_state(str(job.folder / "out")).state == "stopped"


def test_what_is_damaged_is_told_with_what_to_do(job: Any) -> None:
    """A file of rows, the record, and the small files of a run."""
    job.run()
    out, state = job.folder / "out", job.folder / ".out.nemo_llm_stage"
    path = next(out.glob("part-*"))
    path.write_bytes(path.read_bytes()[:500])
    result = invoke("report", out)
    assert result.exit_code == 1
    assert "Remove the file and run the job again" in result.output
    for name, field in (("status.json", "updated_at"), ("status.json", "counters")):
        before = (state / name).read_text()
        (state / name).write_text(json.dumps({**json.loads(before), field: "garbage"}))
        assert "status.json is damaged" in invoke("status", out).output
        (state / name).write_text(before)
    (state / "run.json").write_bytes(b"")
    assert "If no run goes on there, remove it" in invoke("status", out).output
    for record, words in (("{}", "is damaged: it has no id"), ('{"id": 1, "format_version": 9}', "does not know")):
        (state / "job.json").write_text(record)
        for command in ("status", "verify", "report", "failures", "retry-failed", "tail", "pause"):
            assert words in invoke(command, out).output, command


def test_a_path_that_is_no_text_is_refused(job: Any) -> None:
    """A name in an old encoding would be in the record, in prompts of commands, and in the report."""
    with pytest.raises(InputError, match="is not UTF-8; rename it"):
        job.run(output=str(job.folder / "o\udce9"))
