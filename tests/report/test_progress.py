"""What a running job shows, from its counts and a clock alone."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest

from nemo_llm_stage.client.endpoint_status import EndpointMeter, EndpointStatus, bucket_of
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.report.console import PlainConsole
from nemo_llm_stage.report.progress.displays import LogDisplay
from nemo_llm_stage.report.progress.log_line import json_line, text_line
from nemo_llm_stage.report.progress.meter import Meter
from nemo_llm_stage.report.progress.progress import Progress
from nemo_llm_stage.report.progress.screen import lines
from nemo_llm_stage.report.progress.view import JobTitle, View
from nemo_llm_stage.report.progress.words import time_left
from nemo_llm_stage.stage.status import Outage, StageStatus
from nemo_llm_stage.worker.engine import RunStatus

NOON = 1_764_072_000.0
TITLE = JobTitle(("summaries",), ("my-model",), 2400, price_input=1.0, price_output=3.0)
UP, DOWN = "http://localhost:21502/v1", "http://localhost:21501/v1"


def endpoint(url: str, num_answered: int = 0, **fields: Any) -> EndpointStatus:
    latencies = [0] * (bucket_of(3.0) + 1)
    latencies[-1] = num_answered
    return EndpointStatus(
        url, **{"state": "healthy", "num_answered": num_answered, "latencies": tuple(latencies)} | fields
    )


class Run:
    """A job whose clock the test moves."""

    def __init__(self, title: JobTitle = TITLE, before: Counters | None = None) -> None:
        self.now_s = 0.0
        self.counters = Counters()
        self.meter = Meter(title, before or Counters(), 0.0)
        self.status = RunStatus()

    def work(self, seconds: int, rows_per_s: int, **counts: int) -> View:
        """Let the job finish rows for so long, twice a second; `counts` are added as well, at once."""
        for name, num in counts.items():
            setattr(self.counters, name, getattr(self.counters, name) + num)
        for step in range(2 * seconds):
            self.now_s += 0.5
            if step % 2:
                self.counters.num_rows += rows_per_s
                self.counters.num_attempts += rows_per_s
                self.counters.input_tokens += 70 * rows_per_s
                self.counters.output_tokens += 120 * rows_per_s
            view = self.look()
        return view

    def look(self, **fields: Any) -> View:
        return self.meter.view(self.status, self.counters, monotonic_s=self.now_s, now=NOON + self.now_s, **fields)


def test_the_speed_is_that_of_the_last_minute() -> None:
    """In rows and tokens; a slow start is forgotten."""
    run = Run()
    run.work(100, 1)
    view = run.work(70, 10)
    assert view.rows_per_s == pytest.approx(10, rel=0.05)
    assert view.output_per_s == pytest.approx(1200, rel=0.05)


def test_journaled_rows_are_no_speed() -> None:
    """They come at once; the time left is that of the rows that are generated."""
    run = Run()
    run.work(1, 0, num_rows=1000, num_resumed_rows=1000, input_tokens=9999, resumed_input_tokens=9999)
    view = run.work(60, 10)
    assert view.rows_per_s == pytest.approx(10, rel=0.05)
    assert view.left_s is not None
    assert view.left_s[0] < (2400 - 1600) / 10 < view.left_s[1]
    assert view.input_per_s == pytest.approx(700, rel=0.05)


def test_the_time_left_is_not_told_before_twenty_answers() -> None:
    """And it is a range, which gets narrower."""
    run = Run()
    assert time_left(run.work(1, 19)) == ""
    early, late = run.work(2, 10), run.work(60, 10)
    assert early.left_s is not None
    assert late.left_s is not None
    assert early.left_s[1] / early.left_s[0] > late.left_s[1] / late.left_s[0]
    assert " to " in time_left(early)
    assert time_left(late) == "about 2 min 55 s left"


def outage(run: Run) -> RunStatus:
    since = NOON + run.now_s
    stage = StageStatus(
        max_in_flight=32,
        num_retrying=11,
        outage=Outage("connection_failed: refused", since, since + 50, since + 21_600),
        endpoints=(endpoint(DOWN, state="resting", since=since, next_try_at=since + 52, num_refused=38),),
    )
    return RunStatus(stage=stage)


def test_in_an_outage_no_time_left_is_told() -> None:
    """Only since when the server has not answered; the speed afterwards is that of the server that is back."""
    run = Run()
    run.work(60, 10)
    run.status = outage(run)
    view = run.work(48, 0)
    assert (view.left_s, view.rows_per_s, time_left(view)) == (None, 0.0, "waiting for the server since 48 s")
    run.status = RunStatus()
    assert run.work(2, 20).left_s is None
    assert run.work(10, 20).rows_per_s == pytest.approx(20, rel=0.15)


def test_a_pause_is_no_speed() -> None:
    """No time left is told in it, and afterwards the speed is that of the rows that come."""
    run = Run()
    run.work(60, 10)
    run.status = RunStatus(phase="paused")
    view = run.work(30, 0)
    assert (view.left_s, view.rows_per_s, time_left(view)) == (None, 0.0, "paused")
    run.status = RunStatus()
    view = run.work(10, 10)
    assert view.rows_per_s == pytest.approx(10, rel=0.15)
    assert view.left_s is not None


def test_the_cost_of_the_whole_job_is_expected_from_the_rows_of_this_run() -> None:
    """What earlier runs paid is part of it."""
    run = Run(before=Counters(num_rows=400, input_tokens=1_000_000))
    view = run.work(60, 10)
    per_row = (70 * 1 + 120 * 3) / 1e6
    assert view.cost == pytest.approx(1 + 600 * per_row)
    assert view.expected_cost == pytest.approx(1 + 2000 * per_row)


def busy_view() -> View:
    """Two servers, one of them down, with failures of every kind."""
    run = Run()
    run.work(30, 10)
    run.counters = replace(
        run.counters,
        num_failed=22,
        num_skipped=12,
        num_cut_off=3,
        num_wasted_attempts=9,
        errors={"bad_request": 21, "timeout": 1},
        examples={"bad_request": "bad_request: HTTP 400: too\x1b[2J long", "timeout": "timeout: 600 s"},
    )
    down = endpoint(DOWN, state="resting", since=NOON, next_try_at=NOON + 35, num_refused=38, num_failed=38)
    since = NOON + 20
    stage = StageStatus(32, 32, 11, Outage("connection_failed: \x1b[31mrefused", since, NOON + 35, since + 600))
    for num in (0, 100):
        up = endpoint(UP, num, in_flight=32, num_rate_limited=num // 4, num_failed=num // 4)
        run.status = RunStatus(stage=replace(stage, endpoints=(up, down)))
        view = run.work(2, 10)
    return view


def screen(view: View, width: int) -> list[str]:
    console = PlainConsole(file=io.StringIO(), width=width, color_system=None)
    for line in lines(view, width):
        console.print(line)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_nothing_wraps_and_nothing_acts_on_the_terminal(width: int) -> None:
    """Each line fits; escape sequences of servers are shown as text."""
    view = busy_view()
    shown = screen(view, width)
    assert len(shown) == len(lines(view, width))
    assert max(map(len, shown)) <= width
    assert "\x1b" not in "".join(shown)


def test_everything_is_visible_at_80_columns() -> None:
    """Even in trouble: the bar with the rows, outcomes, each server, and until when requests wait."""
    shown = screen(busy_view(), 80)
    for words in (
        "summaries  2,400 rows  my-model",
        "running 34 s",
        "━",
        "340 / 2,400  14 %",
        "rows/s",
        "tok/s out",
        "tok/s in",
        "cost $0.15 of about $1.03",
        "answered 306   failed 22 (6.47 %)   skipped 12   cut off 3",
        "in flight 32 of 32   waiting to retry 11   429s 25   refused 38   wasted",
        "localhost:21501  DOWN 34 s, retry in 1 s",
        "localhost:21502  ok, 20 % 429",
        r"bad_request ×21  HTTP 400: too\x1b[2J long",  # noqa: RUF001
        "since 14 s, next try in 1 s, gives up in 9 min 46 s",
        "Ctrl-C: finish what is in flight and stop   again: stop now",
    ):
        assert any(words in line for line in shown), (words, shown)


def test_a_wide_screen_shows_more_of_each_server() -> None:
    """The slowest answers and the counts."""
    heading = next(line for line in screen(busy_view(), 140) if "server" in line and "p50" in line)
    assert heading.split()[-5:] == ["p95", "p99", "answered", "failed", "sends"]
    assert "p99" not in "".join(screen(busy_view(), 80))


def test_a_wide_screen_shows_the_newest_rows() -> None:
    """As text, each on a line of its own; a narrow one has no room for them."""
    rows = tuple(
        {"at": f"2026-11-25T18:39:0{i}.000Z", "values": {"x": f"answer {i}\n\x1b[2J[red]"}, "errors": {}}
        for i in range(5)
    )
    rows += ({"at": "2026-11-25T18:39:09.000Z", "values": {}, "errors": {"x": "bad_request: no"}},)
    run = Run()
    view = replace(run.work(5, 10), rows=rows)
    wide = [line.plain for line in lines(view, 140)]
    assert any("18:39:04  answer 4" in line and "[red]" in line for line in wide)
    assert any("18:39:09  bad_request: no" in line for line in wide)
    assert not any("\x1b" in line or "\n" in line for line in wide)
    assert not any("18:39" in line.plain for line in lines(view, 80))


def test_while_it_starts_the_screen_says_what_it_waits_for() -> None:
    """With a mark that moves."""
    views = [View(TITLE, now=now, phase="starting", waits_for="Ray") for now in (0.0, 0.5)]
    first, second = (screen(view, 80)[1] for view in views)
    assert first.endswith("waiting for Ray")
    assert first != second


def test_while_it_stops_the_screen_counts_down() -> None:
    """What is waited for, at most how long, and how to stop now."""
    run = Run()
    run.status = RunStatus(stage=StageStatus(num_in_flight=12, max_in_flight=32))
    run.work(5, 10)
    last = screen(run.look(drain_left_s=18.0), 80)[-1]
    assert last == " stopping: waiting for 12 requests in flight, at most 18 s   Ctrl-C: stop now"


def test_a_log_line_is_one_line_with_the_time_first() -> None:
    """For people, and the same for machines."""
    view = busy_view()
    assert text_line(view) == (
        "2025-11-25T12:00:34Z summaries 340/2400 14% 10.1 rows/s eta=205s inflight=32 failed=22 skipped=12 cut_off=3 "
        "retrying=11 retry_429=25 refused=38 cost=0.1462 down=localhost:21501"
    )
    values = json.loads(json_line(view))
    assert (values["rows"], values["total"], values["down"]) == (340, 2400, ["localhost:21501"])
    assert "\n" not in json_line(view)


def test_a_log_gets_a_line_now_and_then_and_at_each_change_of_state() -> None:
    """Ten seconds apart at first; an outage is told as it begins and as it ends."""
    stream = io.StringIO()
    log, run = LogDisplay(stream, "text"), Run()

    def work(seconds: int, rows_per_s: int) -> None:
        for _ in range(seconds):
            log.show(run.work(1, rows_per_s))

    work(25, 10)
    run.status = outage(run)
    work(6, 0)
    run.status = RunStatus()
    work(3, 10)
    log.show(run.look(drain_left_s=20.0))
    written = stream.getvalue().splitlines()
    events = [word for line in written for word in line.split() if word.startswith("event=")]
    assert events == ["event=running", "event=outage_begins", "event=outage_ends", "event=draining"]
    assert len(written) == 4 + 2
    assert 'why="connection_failed: refused"' in written[3]


def test_a_log_tells_each_server_that_goes_or_comes_back_and_when_none_is_left() -> None:
    """Of two servers: one goes, the other goes, one is back, both are."""
    stream = io.StringIO()
    log, run = LogDisplay(stream, "text"), Run()
    urls = (UP, DOWN)
    for down in ((), (DOWN,), (UP, DOWN), (UP,), ()):
        each = [endpoint(url, 10, state="resting" if url in down else "healthy", since=NOON) for url in urls]
        run.status = RunStatus(stage=StageStatus(endpoints=tuple(each)))
        log.show(run.work(1, 10))
    events = [word for line in stream.getvalue().splitlines() for word in line.split() if word.startswith("event=")]
    named = ["running", "server_down", "outage_begins", "outage_ends", "server_back"]
    assert events == [f"event={name}" for name in named]


def test_a_server_without_requests_is_shown() -> None:
    """Before the first answer there is no latency."""
    run = Run()
    run.status = RunStatus(stage=StageStatus(max_in_flight=4, endpoints=(EndpointMeter(UP).status(),)))
    shown = screen(run.look(), 80)
    assert any("localhost:21502  starting" in line and line.rstrip().endswith("-") for line in shown)
    assert any("no answer yet" in line for line in shown)


@pytest.mark.parametrize("width", [30, 80, 140])
def test_a_look_at_a_large_input_has_a_bar(width: int) -> None:
    """Before anything is asked."""
    line = lines(View(waits_for="the input", scanned=(1_200_000_000, 4_800_000_000)), width)[1]
    words = "looking at the input: 1.2 / 4.8 GB  25 %"
    assert line.plain.partition("looking")[1:] == ("looking", words.removeprefix("looking")[: width - 10])
    assert line.cell_len <= width
    assert ("━" in line.plain) is (width > 60)


def test_a_small_input_has_none() -> None:
    """It is looked at in no time."""
    out = io.StringIO()
    progress = Progress(console=PlainConsole(file=out, force_terminal=True, width=100))
    with progress:
        progress.scan(50, 100)
        progress.scan(1 << 30, 4 << 30)
    text = out.getvalue()
    assert "1.1 / 4.3 GB" in text
    assert "0.0 / 0.0" not in text


def test_a_run_that_does_not_begin_leaves_nothing_on_the_screen() -> None:
    """Its error message is all that is left to read: each line of the screen is erased."""
    out = io.StringIO()
    with Progress(console=PlainConsole(file=out, force_terminal=True, width=100)) as progress:
        progress.scan(1 << 30, 4 << 30)
    erase_line = "\x1b[2K"
    assert out.getvalue().rstrip().endswith(erase_line)


def test_the_screen_shows_the_first_answer_at_once() -> None:
    """It does not wait for its next turn."""
    console = PlainConsole(file=io.StringIO(), force_terminal=True, width=80, height=20)
    with Progress(console=console) as progress:
        progress.begin(TITLE, Counters())
        progress.update(RunStatus(), Counters())
        progress.update(RunStatus(), Counters(num_rows=7))
        assert "7 / 2,400" in console.file.getvalue()  # type: ignore[attr-defined]
