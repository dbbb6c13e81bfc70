"""
What does watching a job cost: the live screen on a terminal, and Prometheus reading its metrics every second?

An instant simulated server in a process of its own; the same job in this package's own process, watched and not, in
turns. CPU is that of the job's process, its start included; the lowest of the repeats counts.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import shutil
import sys
import threading
import time
import urllib.request
from typing import Any

from _data import write_texts
from _report import make_parser, show

from nemo_llm_stage.testing import SimulatedServerProcess

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
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind (3)")
    options = parser.parse_args()
    runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(options.repeats):
        for is_watched in runs:
            runs[is_watched].append(run_once(options, is_watched=is_watched))
    best = {name: {key: min(run[key] for run in runs[name]) for key in ("cpu_s", "wall_s")} for name in runs}
    rows = [
        (
            "watched" if name else "not watched",
            f"{best[name]['cpu_s'] / options.rows * 1e6:.1f}",
            f"{options.rows / best[name]['wall_s']:,.0f}",
        )
        for name in runs
    ]
    extra = best[True]["cpu_s"] / best[False]["cpu_s"] - 1
    columns = ("job", "µs of CPU a row", "rows/s")
    results = {"runs": {str(name): each for name, each in runs.items()}, "extra_cpu": extra}
    show("watch", options=options, columns=columns, rows=rows, results=results, notes=[f"extra CPU: {extra:.1%}"])


if __name__ == "__main__":
    main()
