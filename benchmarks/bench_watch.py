"""
What does watching a job cost: the live screen on a terminal, and Prometheus reading its metrics every second?

First the parts: CPU of looking at a row, of renewing the screen, of one read of the metrics. Then a whole run: an
instant simulated server in a process of its own, the same job watched and not, in turns; CPU is that of the job's
process, its start included, and the lowest of the repeats counts. Repeats differ by some percent, so the parts tell
more.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import pty
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
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
import json, sys
import nemo_llm_stage as nls
source, output, base_url, text = sys.argv[1:]
stage = nls.LLMStage(
    client=nls.AsyncHTTPClient(base_url, max_concurrent_requests=256),
    model="sim", prompt="Summarize: {{ text }}", output_column="summary",
)
nls.run_job(stage=stage, input=source, output=output, engine="local", rows_per_partition=2000, **json.loads(text))
"""
PORT = 29464


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


def run_once(options: argparse.Namespace, *, is_watched: bool) -> dict[str, float]:
    """Run the job once, and return its CPU and wall seconds."""
    source, output = write_texts(options.folder, options.rows, num_words=200), options.folder / "watched"
    for folder in (output, output.with_name(f".{output.name}.nemo_llm_stage")):
        shutil.rmtree(folder, ignore_errors=True)
    settings: dict[str, Any] = {"progress": is_watched} | ({"metrics_port": PORT} if is_watched else {})
    with SimulatedServerProcess(max_recorded=0, max_num_seqs=256) as server:
        words = [sys.executable, "-c", PROGRAM, str(source), str(output), server.base_url, json.dumps(settings)]
        started_s = time.monotonic()
        cpu_s = _run_on_a_terminal(words)
        wall_s = time.monotonic() - started_s
    return {"cpu_s": cpu_s, "wall_s": wall_s}


def _run_on_a_terminal(words: list[str]) -> float:
    """Return the CPU seconds of a program whose screen is read, and whose metrics are asked for each second."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(words[0], words)
    is_over = threading.Event()
    threading.Thread(target=_read_metrics, args=(is_over,), daemon=True).start()
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:  # how Linux says that the program has ended
        pass
    is_over.set()
    _, status, usage = os.wait4(pid, 0)
    os.close(terminal)
    if status:
        raise SystemExit(f"the job ended with status {status}")
    return usage.ru_utime + usage.ru_stime


def _read_metrics(is_over: threading.Event) -> None:
    while not is_over.wait(1.0):
        try:
            urllib.request.urlopen(f"http://localhost:{PORT}/metrics", timeout=5).read()
        except OSError:  # a job that is not watched has no port
            continue


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
    runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(options.repeats):
        for is_watched in runs:
            runs[is_watched].append(run_once(options, is_watched=is_watched))
    for is_watched, each in runs.items() if options.repeats else ():
        name = "watched" if is_watched else "not watched"
        rows.append(
            (f"a whole run, {name}: µs of CPU a row", f"{min(r['cpu_s'] for r in each) / options.rows * 1e6:.1f}")
        )
    results = {"parts": found, "runs": {str(name): each for name, each in runs.items()}}
    show("watch", options=options, columns=("what", "cost"), rows=rows, results=results)


if __name__ == "__main__":
    main()
