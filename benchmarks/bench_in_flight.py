"""
What does one worker take with thousands of requests in flight, and with many endpoints?

A job on a simulated server in a process of its own, which holds each request for some seconds, so that the limit is
reached; several endpoints are several addresses of that server. CPU and memory are those of the process that runs the
job, from its start to its end. The limit of open files must allow it: a request in flight is a connection.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
from _report import make_parser, show

from nemo_llm_stage.client.open_files import lack_of_files, raise_open_file_limit
from nemo_llm_stage.servers.health import free_port

COLUMNS = ("in flight", "endpoints", "rows", "most in flight", "CPU of a row", "memory", "wall", "failed")
ROWS_PER_SLOT = 2


@dataclass(frozen=True)
class Case:
    """So many requests in flight in all, at so many endpoints, each request for so many seconds."""

    in_flight: int
    num_endpoints: int
    service_time_s: float


CASES = (Case(64, 1, 0.1), Case(4_096, 1, 8.0), Case(4_096, 32, 8.0), Case(16_384, 1, 30.0), Case(16_384, 32, 30.0))


@contextmanager
def _server(case: Case) -> Iterator[int]:
    """Yield the port of a server on all addresses of this machine."""
    port = free_port() or 0
    words = [sys.executable, "-m", "nemo_llm_stage", "simulate-server", "--host", "0.0.0.0", "--port", str(port)]
    words += [
        "--service-time-s",
        str(case.service_time_s),
        "--max-num-seqs",
        str(case.in_flight),
        "--max-recorded",
        "0",
    ]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        while not _stats(port):
            time.sleep(0.1)
        try:
            yield port
        finally:
            process.kill()


def _stats(port: int) -> dict[str, Any]:
    try:
        with urlopen(f"http://127.0.0.1:{port}/stats", timeout=60) as answer:
            stats: dict[str, Any] = json.load(answer)
            return stats
    except (URLError, OSError):
        return {}


def measure(case: Case) -> dict[str, Any]:
    """Run a job and return what it took."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    num_rows = max(2_000, ROWS_PER_SLOT * case.in_flight)
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(num_rows)]}), folder / "in.parquet")
    with _server(case) as port:
        urls = [f"http://127.0.0.{number + 1}:{port}/v1" for number in range(case.num_endpoints)]
        settings = {
            "input": str(folder / "in.parquet"),
            "output": str(folder / "out"),
            "client": {"base_url": urls, "max_concurrent_requests": case.in_flight // case.num_endpoints},
            "model": "sim",
            "prompt": "Judge: {{ text }}",
            "output_column": "x",
            "engine": "local",
        }
        (folder / "job.yaml").write_text(json.dumps(settings))
        started_s = time.monotonic()
        job = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "nemo_llm_stage",
                "run",
                str(folder / "job.yaml"),
                "--no-progress",
                "--show-rows",
                "0",
            ],
            stdout=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(job.pid, 0)
        wall_s = time.monotonic() - started_s
        most = _stats(port).get("max_in_flight")
    rows = pq.read_table(folder / "out", columns=["x_error"]).column("x_error")
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(rows) == num_rows
    return {
        "in_flight": case.in_flight,
        "num_endpoints": case.num_endpoints,
        "num_rows": num_rows,
        "max_in_flight": most,
        "cpu_us_per_row": 1e6 * (used.ru_utime + used.ru_stime) / num_rows,
        "max_rss_mib": used.ru_maxrss / 1024,
        "wall_s": wall_s,
        "num_failed": num_rows - rows.null_count,
    }


def _row(result: dict[str, Any]) -> list[object]:
    return [
        f"{result['in_flight']:,}",
        result["num_endpoints"],
        f"{result['num_rows']:,}",
        f"{result['max_in_flight']:,}",
        f"{result['cpu_us_per_row']:.0f} µs",
        f"{result['max_rss_mib']:.0f} MiB",
        f"{result['wall_s']:.0f} s",
        result["num_failed"],
    ]


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__)
    parser.add_argument("--cases", type=int, nargs="+", default=[*range(len(CASES))], help="which, from 0 (all)")
    options = parser.parse_args()
    raise_open_file_limit()
    chosen = [CASES[number] for number in options.cases]
    if lack := lack_of_files(max(case.in_flight for case in chosen)):
        sys.exit(lack)
    results = [measure(case) for case in chosen]
    show("in_flight", options=options, columns=COLUMNS, rows=map(_row, results), results=results)


if __name__ == "__main__":
    main()
