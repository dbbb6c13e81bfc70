"""
What does watching a job cost: the live screen, `status --watch` beside it, Prometheus reading its metrics?

First the parts: CPU of looking at a row, of renewing the screen, of one read of the metrics. Then one job, which is
watched in every other slice of some seconds (`_watched`): an instant simulated server in a process of its own, the
screen on a terminal that is read, `status --watch` and the metrics beside it. What a row costs in a watched slice is
set beside the slice before or after it. On a busy machine ``--times 10 --ways screen metrics`` shows more of the cost
than of the noise: it renews the screen and reads the metrics ten times as often, and divides what that costs by ten.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from math import expm1, inf, log, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from _data import write_texts
from _report import make_parser, show
from _watched import Plan
from rich.console import Group

from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.core import Completion, RowResult
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.report.console import PlainConsole
from nemo_llm_stage.report.estimate import student_t
from nemo_llm_stage.report.metrics.figures import figures_of
from nemo_llm_stage.report.progress.displays import RENEW_EVERY_S
from nemo_llm_stage.report.progress.meter import Meter
from nemo_llm_stage.report.progress.screen import lines
from nemo_llm_stage.report.progress.view import JobTitle, View
from nemo_llm_stage.stage.status import StageStatus
from nemo_llm_stage.testing import SimulatedServerProcess
from nemo_llm_stage.worker.engine import TICK_S, RunStatus
from nemo_llm_stage.worker.samples import Samples

WATCHED = Path(__file__).with_name("_watched.py")
WATCHING = {"screen": "Thread screen", "keeper": "run-keeper"}
"""What watches → a word in the names of its threads. The keeper writes the status of every job, watched or not."""

WAYS = ["screen", "metrics", "status"]
METRICS_EVERY_S = 5.0
"""Seconds between two reads of the metrics; Prometheus usually waits for 15 s and more."""

TAIL = 3000
"""Bytes of the terminal that are told if the job fails."""

MANY = 50
"""Hard links to the input: a job of so many times its rows does not end before all is measured. A file has more rows
than answers are remembered for identical requests."""


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


def slices_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run a job that is watched now and then; return its slices, two to a pair."""
    told, folder = options.folder / "slices.json", options.folder / "watched"
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "in"
    source.mkdir(parents=True)
    texts = write_texts(options.folder, options.rows, num_words=200)
    for number in range(MANY):
        (source / f"{number:02}.parquet").hardlink_to(texts)
    told.unlink(missing_ok=True)
    with SimulatedServerProcess(max_recorded=0, max_num_seqs=256) as server:
        plan = Plan(
            source=str(source),
            output=str(folder / "out"),
            base_url=server.base_url,
            told=str(told),
            flag=str(folder / "is_watched"),
            port=_free_port(),
            num_pairs=options.pairs,
            slice_s=options.slice_s,
            ways=options.ways,
            times=options.times,
        )
        _run_on_a_terminal([sys.executable, str(WATCHED), json.dumps(asdict(plan))], plan)
    slices: list[dict[str, Any]] = json.loads(told.read_text())
    shutil.rmtree(folder)
    return slices


def _free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return int(server.getsockname()[1])


def _run_on_a_terminal(words: list[str], plan: Plan) -> None:
    """Run a program whose screen is read; while it says so, watch it from outside too."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(words[0], words)
    is_over = threading.Event()
    for way, watch in {"metrics": _read_metrics, "status": _watch_status}.items():
        if way in plan.ways:
            threading.Thread(target=watch, args=(is_over, plan), daemon=True).start()
    tail = b""
    try:
        while data := os.read(terminal, 65536):
            tail = (tail + data)[-TAIL:]
    except OSError:  # how Linux says that the program has ended
        pass
    is_over.set()
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    if status:
        raise SystemExit(f"the job ended with status {status}:\n{tail.decode(errors='replace')}")


def _read_metrics(is_over: threading.Event, plan: Plan) -> None:
    while not is_over.wait(METRICS_EVERY_S / plan.times):
        with suppress(OSError):  # it is not open yet, or no more
            if Path(plan.flag).exists():
                urllib.request.urlopen(f"http://localhost:{plan.port}/metrics", timeout=5).read()


def _watch_status(is_over: threading.Event, plan: Plan) -> None:
    """Run `status --watch`; it stands still while nobody watches."""
    words = [sys.executable, "-m", "nemo_llm_stage", "status", plan.output, "--watch"]
    output = Path(plan.output)
    while not list(output.parent.glob(f".{output.name}*/status.json")):
        if is_over.wait(0.2):
            return
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        while not is_over.wait(0.1):
            process.send_signal(signal.SIGCONT if Path(plan.flag).exists() else signal.SIGSTOP)
        process.kill()


def _figures(slices: list[dict[str, Any]], times: float) -> dict[str, float]:
    """Return what the pairs of slices say of usual watching: means, and the half width of the 95 % interval."""
    watched = [each for each in slices if each["is_watched"]]
    others = [each for each in slices if not each["is_watched"]]
    cpu, speed = _more(watched, others, _cpu_us), _more(watched, others, _per_s)
    found = {"num_pairs": len(watched), "cpu_us": fmean(map(_cpu_us, others)), "rows_per_s": fmean(map(_per_s, others))}
    found |= {"more_cpu_percent": cpu[0] / times, "more_cpu_margin": cpu[1] / times}
    pairs = list(zip(watched, others, strict=True))
    more_ms = [(_cpu_us(one) - _cpu_us(other)) * _per_s(one) / 1e3 for one, other in pairs]
    found |= {"more_cpu_ms_per_s": fmean(more_ms) / times, "more_cpu_ms_per_s_margin": _margin(more_ms) / times}
    found |= {"more_speed_percent": speed[0] / times, "more_speed_margin": speed[1] / times}
    for what, word in WATCHING.items():
        shares = [sum(s for name, s in each["threads_s"].items() if word in name) / each["cpu_s"] for each in watched]
        found[f"{what}_percent"] = 100 * fmean(shares) / (times if what == "screen" else 1)
    return found


def _cpu_us(piece: dict[str, Any]) -> float:
    return 1e6 * float(piece["cpu_s"]) / int(piece["num_rows"])


def _per_s(piece: dict[str, Any]) -> float:
    return int(piece["num_rows"]) / float(piece["wall_s"])


def _more(
    watched: list[dict[str, Any]], others: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]
) -> tuple[float, float]:
    """Return by how many percent a watched slice has more than its pair, and the half width of the 95 % interval."""
    logs = [log(value(one) / value(other)) for one, other in zip(watched, others, strict=True)]
    return 100 * expm1(fmean(logs)), 100 * _margin(logs)


def _margin(values: list[float]) -> float:
    """Return the half width of the 95 % interval of the mean."""
    return student_t(len(values) - 1) * stdev(values) / sqrt(len(values)) if len(values) > 1 else inf


def _rows(found: dict[str, float]) -> list[tuple[str, str]]:
    def with_margin(name: str) -> str:
        return f"{found[f'{name}_percent']:+.2f} ± {found[f'{name}_margin']:.2f} %"

    return [
        ("a job, not watched: µs of CPU a row", f"{found['cpu_us']:.1f}"),
        ("a job, not watched: rows a second", f"{found['rows_per_s']:,.0f}"),
        ("watched, more CPU a row", with_margin("more_cpu")),
        (
            "watched, more ms of CPU a second",
            f"{found['more_cpu_ms_per_s']:+.2f} ± {found['more_cpu_ms_per_s_margin']:.2f}",
        ),
        ("watched, rows a second", with_margin("more_speed")),
        *((f"of a watched job's CPU: {what}", f"{found[f'{what}_percent']:.2f} %") for what in WATCHING),
    ]


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help=f"of a file; the job has {MANY} of them (100000)")
    parser.add_argument("--pairs", type=int, default=60, help="of slices of one job; 0: the parts alone (60)")
    parser.add_argument("--slice-s", type=float, default=2.0, help="seconds of a slice (2)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help=f"to watch ({' '.join(WAYS)})")
    parser.add_argument("--times", type=float, default=1.0, help="as often: the screen and the metrics (1)")
    options = parser.parse_args()
    found = {num: parts(num) for num in (1, 16)}
    rows = [("look at a row, µs of CPU", f"{found[1]['sampling_us']:.2f}")]
    for num, costs in found.items():
        per_s = costs["view_ms"] / TICK_S + costs["screen_ms"] / RENEW_EVERY_S
        rows.append((f"{num} servers: the screen, ms of CPU a second", f"{per_s:.1f}"))
        rows.append((f"{num} servers: one read of the metrics, ms of CPU", f"{costs['metrics_ms']:.1f}"))
    slices = slices_of(options) if options.pairs else []
    figures = _figures(slices, options.times) if slices else {}
    rows += _rows(figures) if slices else []
    results = {"parts": found, "figures": figures, "slices": slices}
    show("watch", options=options, columns=("what", "cost"), rows=rows, results=results)


if __name__ == "__main__":
    main()
