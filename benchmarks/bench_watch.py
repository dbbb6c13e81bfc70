"""
What does watching a job cost: the live screen, `status --watch` beside it, Prometheus reading its metrics each second?

First the parts: CPU of looking at a row, of renewing the screen, of one read of the metrics. Then whole runs, watched
and not, in turns: an instant simulated server in a process of its own, the screen on a terminal that is read,
`status --watch` and the metrics beside it. Each run tells the CPU of each of its threads, so that the same run says
how much of it went to watching: the thread of the screen and the keeper of the folder. Two runs differ by some percent
on a busy machine; this share does not.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import pty
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from _data import write_texts
from _report import make_parser, show
from rich.console import Group

from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.core import Completion, RowResult
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.report.console import PlainConsole
from nemo_llm_stage.report.metrics.figures import figures_of
from nemo_llm_stage.report.progress.meter import Meter
from nemo_llm_stage.report.progress.screen import lines
from nemo_llm_stage.report.progress.view import JobTitle, View
from nemo_llm_stage.stage.status import StageStatus
from nemo_llm_stage.testing import SimulatedServerProcess
from nemo_llm_stage.worker.engine import RunStatus
from nemo_llm_stage.worker.samples import Samples

PROGRAM = """
import json, sys, threading, time
from pathlib import Path
import nemo_llm_stage as nls
source, output, base_url, text, told = sys.argv[1:]
spent_ns, is_over = {}, threading.Event()
def look():
    while not is_over.wait(0.5):
        for thread in threading.enumerate():
            try:
                ns = int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0])
            except OSError:
                continue
            spent_ns[f"{type(thread).__name__} {thread.name} {thread.native_id}"] = ns
threading.Thread(target=look, name="look", daemon=True).start()
stage = nls.LLMStage(
    client=nls.AsyncHTTPClient(base_url, max_concurrent_requests=256),
    model="sim", prompt="Summarize: {{ text }}", output_column="summary",
)
started_s, cpu_s = time.monotonic(), time.process_time()
nls.run_job(stage=stage, input=source, output=output, engine="local", rows_per_partition=2000, **json.loads(text))
times = {"wall_s": time.monotonic() - started_s, "cpu_s": time.process_time() - cpu_s}
is_over.set()
Path(told).write_text(json.dumps(times | {"threads": spent_ns}))
"""
PORT = 29464

WATCHING = {"screen": "_RefreshThread", "keeper": "run-keeper"}
"""What watches → a word in the names of its threads. The keeper writes the status of every job, watched or not."""


def parts(num_servers: int) -> dict[str, float]:
    """Return the CPU of each part of watching: µs a row, and ms each time for a job of so many servers."""
    latencies = (1,) * 60
    endpoints = tuple(
        EndpointStatus(f"http://gpu-{number}:8000/v1", state="healthy", num_answered=60, latencies=latencies)
        for number in range(num_servers)
    )
    status = RunStatus(stage=StageStatus(10, 20, endpoints=endpoints))
    counters, seconds = Counters(num_attempts=1000), itertools.count(1)
    meter = Meter(JobTitle(("x",), ("m",), 10**6, price_input=1.0, price_output=1.0), Counters(), 0.0)

    def look() -> View:
        counters.num_rows += 10
        second = next(seconds) / 2
        return meter.view(status, counters, monotonic_s=second, now=second)

    for _ in range(120):
        view = look()
    console = PlainConsole(file=io.StringIO(), width=140, force_terminal=True)
    outcome = {"x": RowResult(value="an answer", completion=Completion(("an answer",)), attempts=1)}
    watched = Samples().watching(lambda _: None)
    return {
        "sampling_us": 1e3 * _cpu_ms(lambda: watched(outcome), 200_000),
        "view_ms": _cpu_ms(look, 200),
        "screen_ms": _cpu_ms(lambda: console.print(Group(*lines(view, 140))), 200),
        "metrics_ms": _cpu_ms(lambda: [list(figure.series()) for figure in figures_of(view)], 100),
    }


def _cpu_ms(function: Callable[[], object], num: int) -> float:
    """Return the CPU milliseconds of one call."""
    started_s = time.process_time()
    for _ in range(num):
        function()
    return (time.process_time() - started_s) / num * 1e3


def run_once(options: argparse.Namespace, *, is_watched: bool) -> dict[str, Any]:
    """Run the job once; return its CPU and wall seconds, and the CPU seconds of its threads."""
    source, output = write_texts(options.folder, options.rows, num_words=200), options.folder / "watched"
    for folder in (output, output.with_name(f".{output.name}.nemo_llm_stage")):
        shutil.rmtree(folder, ignore_errors=True)
    settings: dict[str, Any] = {"progress": is_watched} | ({"metrics_port": PORT} if is_watched else {})
    told = options.folder / "watched.json"
    with SimulatedServerProcess(max_recorded=0, max_num_seqs=256) as server:
        words = [sys.executable, "-c", PROGRAM, str(source), str(output), server.base_url, json.dumps(settings)]
        _run_on_a_terminal([*words, str(told)], output if is_watched else None)
    found: dict[str, Any] = json.loads(told.read_text())
    named = found.pop("threads")
    for what, word in WATCHING.items():
        found[f"{what}_s"] = sum(ns for name, ns in named.items() if word in name) / 1e9
    return found


def _run_on_a_terminal(words: list[str], watched: Path | None) -> None:
    """Run a program whose screen is read; where its output is told, watch it and ask for its metrics each second."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(words[0], words)
    is_over = threading.Event()
    if watched is not None:
        threading.Thread(target=_read_metrics, args=(is_over,), daemon=True).start()
        threading.Thread(target=_watch_status, args=(is_over, watched), daemon=True).start()
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:  # how Linux says that the program has ended
        pass
    is_over.set()
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    if status:
        raise SystemExit(f"the job ended with status {status}")


def _read_metrics(is_over: threading.Event) -> None:
    while not is_over.wait(1.0):
        try:
            urllib.request.urlopen(f"http://localhost:{PORT}/metrics", timeout=5).read()
        except OSError:  # it is not open yet
            continue


def _watch_status(is_over: threading.Event, output: Path) -> None:
    """Run `status --watch`, from the moment on when there is a job."""
    words = [sys.executable, "-m", "nemo_llm_stage", "status", str(output), "--watch"]
    while not is_over.wait(0.2):
        if list(output.parent.glob(f".{output.name}*/status.json")):
            with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
                is_over.wait()
                process.kill()


def _rows(runs: dict[bool, list[dict[str, Any]]], num_rows: int) -> list[tuple[str, str]]:
    """Return what the whole runs say: the medians, and the difference of watched and not."""
    cpu_us = {kind: median(run["cpu_s"] for run in each) / num_rows * 1e6 for kind, each in runs.items()}
    per_s = {kind: num_rows / median(run["wall_s"] for run in each) for kind, each in runs.items()}
    rows = []
    for kind, name in ((False, "not watched"), (True, "watched")):
        rows.append((f"a whole run, {name}: µs of CPU a row", f"{cpu_us[kind]:.1f}"))
        rows.append((f"a whole run, {name}: rows a second", f"{per_s[kind]:,.0f}"))
    rows.append(("watched, more CPU a row", f"{100 * (cpu_us[True] / cpu_us[False] - 1):+.1f} %"))
    rows.append(("watched, rows a second", f"{100 * (per_s[True] / per_s[False] - 1):+.1f} %"))
    for what in WATCHING:
        share = median(run[f"{what}_s"] / run["cpu_s"] for run in runs[True])
        rows.append((f"of a watched run's CPU: {what}", f"{100 * share:.2f} %"))
    return rows


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="of the job (100000)")
    parser.add_argument("--repeats", type=int, default=3, help="whole runs of each kind; 0: the parts alone (3)")
    options = parser.parse_args()
    found = {num: parts(num) for num in (1, 16)}
    rows = [("look at a row, µs of CPU", f"{found[1]['sampling_us']:.2f}")]
    for num, costs in found.items():
        per_s = 2 * (costs["view_ms"] + costs["screen_ms"])
        rows.append((f"{num} servers: the screen, ms of CPU a second", f"{per_s:.1f}"))
        rows.append((f"{num} servers: one read of the metrics, ms of CPU", f"{costs['metrics_ms']:.1f}"))
    runs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for _ in range(options.repeats):
        for is_watched in runs:
            runs[is_watched].append(run_once(options, is_watched=is_watched))
    if options.repeats:
        rows += _rows(runs, options.rows)
    results = {"parts": found, "runs": {str(name): each for name, each in runs.items()}}
    show("watch", options=options, columns=("what", "cost"), rows=rows, results=results)


if __name__ == "__main__":
    main()
