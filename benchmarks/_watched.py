"""
One job that is watched now and then: slices of time with the screen and without it, in pairs, each in either order.

Run as a program on a terminal that is read. While a slice is watched there is a file that tells so to those who watch
from outside. Two runs of a job on a busy machine differ by some percent; two slices of one run, one after the other,
by less, and the mean over many pairs by little.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nemo_llm_stage as nls
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.job.prepare import prepare_job
from nemo_llm_stage.report.console import PlainConsole
from nemo_llm_stage.report.metrics.publisher import Publisher
from nemo_llm_stage.report.progress import displays
from nemo_llm_stage.report.progress.progress import Progress
from nemo_llm_stage.report.progress.view import View
from nemo_llm_stage.serving import StartedServers
from nemo_llm_stage.watch import WatchedRun
from nemo_llm_stage.worker.control.hold import keep_run

SETTLE_S = 0.4
"""After each change, before a slice is measured: a screen that begins and ends is no part of it."""

WARM_UP_S = 3.0

MIN_ROWS = 1000
"""Of a slice: on a machine that does something else it takes longer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What is measured.

    Attributes:
        source: Input files.
        output: Folder; the job is left unfinished.
        base_url: Of the server.
        told: Where the slices are written.
        flag: Is there while a slice is watched.
        port: Of the metrics.
        num_pairs: Of slices.
        slice_s: Seconds of each.
        ways: To watch: ``screen``, ``metrics``, ``status``.
        times: As often as usual the screen is renewed and the metrics are read.
    """

    source: str
    output: str
    base_url: str
    told: str
    flag: str
    port: int
    num_pairs: int
    slice_s: float
    ways: list[str]
    times: float


@dataclass(frozen=True, slots=True)
class Slice:
    """What there was in a slice: seconds of CPU by thread as the kernel counts them, those of the process, rows."""

    is_watched: bool
    num_rows: int
    wall_s: float
    cpu_s: float
    threads_s: dict[str, float]


class _EnoughError(Exception):
    """All slices are measured."""


class _Unwatched(Progress):
    """Shows nothing by itself, and ends the job once all is measured."""

    def __init__(self, publisher: Publisher) -> None:
        super().__init__(is_shown=False, publisher=publisher)
        self.newest = View()
        self.is_over = threading.Event()

    def update(self, *args: Any, **options: Any) -> View:
        """See `Progress.update`."""
        if self.is_over.is_set():
            raise _EnoughError
        self.newest = super().update(*args, **options)
        return self.newest


def _measure(plan: Plan, shown: _Unwatched, stage: nls.LLMStage) -> None:
    """Measure all slices beside the job, and end it."""
    try:
        time.sleep(WARM_UP_S)
        rng, slices = random.Random(0), []
        for _ in range(plan.num_pairs):
            first = rng.random() < 0.5
            slices += [_slice(plan, shown, stage, is_watched=is_watched) for is_watched in (first, not first)]
            Path(plan.told).write_text(json.dumps([asdict(each) for each in slices]))
    finally:
        shown.is_over.set()


def _slice(plan: Plan, shown: _Unwatched, stage: nls.LLMStage, *, is_watched: bool) -> Slice:
    with _watching(plan, shown) if is_watched else _nothing():
        time.sleep(SETTLE_S)
        before, rows, wall_s, cpu_s = _threads_s(), _num_rows(stage), time.monotonic(), time.process_time()
        time.sleep(plan.slice_s)
        while _num_rows(stage) < rows + MIN_ROWS and not shown.is_over.is_set():
            time.sleep(0.1)
        rows, wall_s, cpu_s = _num_rows(stage) - rows, time.monotonic() - wall_s, time.process_time() - cpu_s
        threads_s: dict[str, float] = {}
        for (_, name), spent_s in _threads_s().items():
            threads_s[name] = threads_s.get(name, 0.0) + spent_s
        for (_, name), spent_s in before.items():
            threads_s[name] = threads_s.get(name, 0.0) - spent_s
    return Slice(is_watched, rows, wall_s, cpu_s, threads_s)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _watching(plan: Plan, shown: _Unwatched) -> Iterator[None]:
    flag = Path(plan.flag)
    flag.touch()
    screen: displays.Display = displays.NoDisplay()
    if "screen" in plan.ways:
        screen = displays.ScreenDisplay(PlainConsole(file=sys.stderr), lambda: shown.newest)
    try:
        yield
    finally:
        screen.close(None)
        flag.unlink()


def _num_rows(stage: nls.LLMStage) -> int:
    return sum(endpoint.num_answered for endpoint in stage.status().endpoints)


def _threads_s() -> dict[tuple[int, str], float]:
    """Return the CPU of each thread of Python's, by its number and its kind; nothing where the kernel does not tell."""
    found = {}
    for thread in threading.enumerate():
        try:
            ns = int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0])
        except OSError:
            continue
        found[(thread.native_id or 0, f"{type(thread).__name__} {thread.name.partition('_')[0]}")] = ns / 1e9
    return found


def main() -> None:
    """Run the job for as long as it is measured."""
    plan = Plan(**json.loads(sys.argv[1]))
    displays.RENEW_EVERY_S /= plan.times
    settings = JobSettings(engine="local", rows_per_partition=2000, metrics_port=plan.port)
    client = nls.AsyncHTTPClient(plan.base_url, max_concurrent_requests=256)
    stage = nls.LLMStage(client=client, model="sim", prompt="Summarize: {{ text }}", output_column="summary")
    with _Unwatched(Publisher(settings, plan.output)) as shown:
        job = prepare_job(stage, plan.source, plan.output, settings)
        threading.Thread(target=_measure, args=(plan, shown, stage), daemon=True).start()
        try:
            with keep_run(job, before=Counters(), num_rows=job.plan.num_rows, command=None) as keeper:
                WatchedRun(job, shown, keeper, StartedServers(None, shown)).run()
        except _EnoughError:
            return
        finally:
            stage.close()
    sys.exit("the job was over before all slices were measured; give it more rows")


if __name__ == "__main__":
    main()
