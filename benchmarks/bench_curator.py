"""
The same rows, in several partitions, through NeMo Curator's executors: its own synthetic stage, and this package's.

Each run is a pipeline ParquetReader → stage → ParquetWriter in a program of its own, against a simulated server with
SLOTS slots and heavy-tailed times, with clients of as many requests in flight; Curator gives its own stage several
workers. `ours` is LLMProcessingStage, `curator` is Curator's stage and client where Curator is installed by itself,
`curator_uvloop` the same where uvloop is installed too, `curator_our_client` Curator's stage with our client. A run
that fails is shown with its last words. Needs the extra `curator`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from _curator import PROMPT, STAGES
from _data import write_texts
from _report import make_parser, show
from _times import choose_times

from nemo_llm_stage.testing import ServerStats, SimulatedServerProcess

PROGRAM = Path(__file__).parent / "_curator.py"
EXECUTORS = ("ray_data", "actor_pool", "xenna", "xenna_batch")
COLUMNS = ("stage", "executor", "batch", "rows", "slots busy", "to end", "asking s", "in flight", "requests", "ended")


def write_partitions(options: argparse.Namespace) -> tuple[Path, list[str]]:
    """Return a folder of files, one for each partition, and the rows' prompts."""
    table = pq.read_table(write_texts(options.folder, options.rows, num_words=options.words))
    folder = options.folder / f"curator_{options.rows}x{options.words}_{options.partitions}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    num_rows = -(-options.rows // options.partitions)
    for start in range(0, options.rows, num_rows):
        pq.write_table(table.slice(start, num_rows), folder / f"{start:08}.parquet")
    return folder, [PROMPT + text for text in table.column("text").to_pylist()]


def run_once(options: argparse.Namespace, stage: str, executor: str, batch_size: int) -> dict[str, Any]:
    """Run one pipeline and return what came of it."""
    source, prompts = write_partitions(options)
    output = options.folder / "curator_output"
    shutil.rmtree(output, ignore_errors=True)
    config, times = choose_times(prompts, options.slots, options.mean_s, options.sigma)
    with SimulatedServerProcess(config) as server, tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, str(PROGRAM), stage, executor, str(source), str(output), server.base_url]
        command += [str(options.slots), str(batch_size)]
        try:
            code: int | None = subprocess.run(command, stdout=log, stderr=log, timeout=options.timeout_s).returncode
        except subprocess.TimeoutExpired:
            code = None
        stats = server.stats
        log.seek(0)
        words = log.read()
    return {
        "stage": stage,
        "executor": executor,
        "batch_size": batch_size,
        "num_written": count_rows(output),
        "share_busy": stats.occupancy_before_tail,
        "share_busy_to_end": stats.occupancy,
        "asking_s": asking_s(stats),
        "bound_s": max(sum(times) / options.slots, max(times)),
        "max_in_flight": stats.max_in_flight,
        "num_requests": stats.num_requests,
        "ended": "well" if code == 0 else f"after {options.timeout_s:g} s" if code is None else last_words(words),
    }


def asking_s(stats: ServerStats) -> float:
    """Return the seconds from the first request to the last answer."""
    first, last = stats.first_start_monotonic_s, stats.last_end_monotonic_s
    return 0.0 if first is None or last is None else last - first


def last_words(log: str) -> str:
    """Return the last error in a program's log that is not Ray's word for it."""
    errors = re.findall(r"^(?:\(.*?\)\S* )?([a-zA-Z]*Error: .*?)\s*$", log, re.MULTILINE)
    return errors[-1] if errors else "with an error"


def count_rows(output: Path) -> int:
    """Return how many rows were written with an answer."""
    num_rows = 0
    for path in output.glob("*.parquet"):
        with contextlib.suppress(OSError):
            column = pq.read_table(path, columns=["summary"]).column("summary")
            num_rows += len(column) - column.null_count
    return num_rows


def cells_of(result: dict[str, Any]) -> list[str]:
    """Return a result as a row of the table."""
    return [
        result["stage"],
        result["executor"],
        str(result["batch_size"] or "default"),
        f"{result['num_written']:,}",
        f"{result['share_busy']:.2f}",
        f"{result['share_busy_to_end']:.2f}",
        f"{result['asking_s']:.1f}",
        f"{result['max_in_flight']:,}",
        f"{result['num_requests']:,}",
        result["ended"][:70],
    ]


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="(all)")
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=["ray_data"], help="(ray_data)")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[0], help="partitions at once; 0: default (0)")
    parser.add_argument("--rows", type=int, default=2000, help="(2000)")
    parser.add_argument("--words", type=int, default=20, help="words of each row's text (20)")
    parser.add_argument("--partitions", type=int, default=10, help="(10)")
    parser.add_argument("--slots", type=int, default=64, help="of the server, and requests in flight (64)")
    parser.add_argument("--mean-s", type=float, default=0.368, help="mean seconds that a request is served (0.368)")
    parser.add_argument("--sigma", type=float, default=1.0, help="of the lognormal times (1)")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="a run that takes longer is ended (300)")
    options = parser.parse_args()
    results = []
    for executor, stage, batch_size in itertools.product(options.executors, options.stages, options.batch_sizes):
        results.append(run_once(options, stage, executor, batch_size))
        print(*cells_of(results[-1]), sep="  ", file=sys.stderr, flush=True)
    notes = [
        "rows: written with an answer; slots busy: share of all slots from the first request to the last one's start;",
        "to end: to the last answer; in flight: most requests at once;",
        f"greedy FIFO could not end before {results[0]['bound_s']:.1f} s",
    ]
    cells = [cells_of(result) for result in results]
    show("curator", options=options, columns=COLUMNS, rows=cells, results=results, notes=notes)


if __name__ == "__main__":
    main()
