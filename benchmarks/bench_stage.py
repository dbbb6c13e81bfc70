"""
What does a row cost, end to end from Parquet to Parquet, and does that cost stay the same as the rows grow?

An instant simulated server in a process of its own, so that all time is the client's. Four ways: process (one table in
memory), map (a Ray Data pipeline), local and ray (run_job with its journal, in this process and on Ray). Each run is a
program of its own, started cold.

The worker's CPU is that of the process that asks: for local and process the whole call, planning and checks included;
for the Ray ways the actor, from the first request to its end. All CPU is that of every process the program started, the
server's left out. The seconds before the first request and after the last answer are split by where they go.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from _data import write_texts
from _process import Cost, measure
from _report import make_parser, show

from nemo_llm_stage.testing import ServerStats, SimulatedServerProcess

COLUMNS = (
    "way", "rows", "limit", "actors", "rows/s", "worker µs", "rows/CPU-s", "all µs", "RSS MiB",
    "import", "ray", "to first", "asking", "to done", "exit", "overhead",
)  # fmt: skip
WORKER_OF = {"ray": "PartitionActor", "map": "StageActor"}
"""What Ray calls the actors in their command lines."""


def run_once(options: argparse.Namespace, way: str, num_rows: int, limit: int, actors: int) -> dict[str, Any]:
    """Run the rows once, one way, and return what it took."""
    rows_per_document = options.rows_per_document
    source = write_texts(options.folder, num_rows, num_words=options.words, rows_per_document=rows_per_document)
    output = options.folder / f"stage_{way}"
    shutil.rmtree(output, ignore_errors=True)
    settings = {"limit": limit, "actors": actors, "rows_per_partition": options.rows_per_partition}
    settings["order"] = options.order
    with SimulatedServerProcess(max_recorded=0, max_num_seqs=max(256, limit)) as server:
        program = [sys.executable, str(Path(__file__).with_name("_ways.py")), way, str(source), str(output)]
        cost = measure([*program, server.base_url, json.dumps(settings)], env={"RAY_DEDUP_LOGS": "0"})
        stats = server.stats
    count_answers(output if output.exists() else output.with_suffix(".parquet"), num_rows)
    return {"way": way, "rows": num_rows, **settings} | figures(way, num_rows, cost, stats)


def count_answers(output: Path, num_rows: int) -> None:
    """Stop unless every row has an answer."""
    num_answers = num_rows - pq.read_table(output, columns=["summary"]).column("summary").null_count
    if num_answers != num_rows:
        raise SystemExit(f"{output} holds {num_answers} answers of {num_rows}")


def figures(way: str, num_rows: int, cost: Cost, stats: ServerStats) -> dict[str, Any]:
    """Return what a run took, in seconds, µs per row and MiB."""
    told = json.loads(cost.output.splitlines()[-1])
    at = {name: mark[0] for name, mark in told["marks"].items()}
    first, last = stats.first_start_monotonic_s, stats.last_end_monotonic_s
    assert first is not None
    assert last is not None
    if way in WORKER_OF:
        actors = cost.find(WORKER_OF[way])
        worker_cpu_s = sum(actor.cpu_between_s(first, cost.ended_monotonic_s) for actor in actors)
        rss_mib = max((actor.peak_rss_mib for actor in actors), default=0.0)
    else:
        worker_cpu_s = told["marks"]["done"][1] - told["marks"]["ready"][1]
        rss_mib = told["peak_rss_mib"]
    return {
        "rows_per_s": num_rows / (last - first),
        "rows_per_s_whole": num_rows / cost.wall_s,
        "worker_cpu_us_per_row": worker_cpu_s / num_rows * 1e6,
        "rows_per_worker_cpu_s": num_rows / worker_cpu_s,
        "all_cpu_us_per_row": cost.cpu_s / num_rows * 1e6,
        "all_cpu_s": cost.cpu_s,
        "worker_peak_rss_mib": rss_mib,
        "driver_peak_rss_mib": told["peak_rss_mib"],
        "wall_s": cost.wall_s,
        "import_s": at["imported"] - cost.started_monotonic_s,
        "ray_init_s": at["ready"] - at["imported"],
        "to_first_request_s": first - at["ready"],
        "asking_s": last - first,
        "to_done_s": at["done"] - last,
        "exit_s": cost.ended_monotonic_s - at["done"],
        "overhead_s": cost.wall_s - (last - first),
        "num_requests": stats.num_requests,
        "num_connections": stats.num_connections,
    }


def cells_of(result: dict[str, Any]) -> list[str]:
    """Return a result as a row of the table."""
    seconds = ("import_s", "ray_init_s", "to_first_request_s", "asking_s", "to_done_s", "exit_s", "overhead_s")
    return [
        result["way"],
        *(f"{result[name]:,}" for name in ("rows", "limit", "actors")),
        f"{result['rows_per_s']:,.0f}",
        f"{result['worker_cpu_us_per_row']:.0f}",
        f"{result['rows_per_worker_cpu_s']:,.0f}",
        f"{result['all_cpu_us_per_row']:.0f}",
        f"{result['worker_peak_rss_mib']:.0f}",
        *(f"{result[name]:.1f}" for name in seconds),
    ]


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    ways = ("process", "map", "local", "ray")
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways, help="(all)")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000], help="rows of a run (10000)")
    parser.add_argument("--words", type=int, default=200, help="words of each row's text (200)")
    parser.add_argument("--limits", type=int, nargs="+", default=[64], help="requests in flight, over all actors (64)")
    parser.add_argument("--actors", type=int, nargs="+", default=[1], help="of the Ray ways (1)")
    parser.add_argument("--rows-per-partition", type=int, help="of the jobs (what the package chooses)")
    parser.add_argument("--order", choices=("auto", "input"), default="auto", help="of the jobs' rows (auto)")
    parser.add_argument("--rows-per-document", type=int, default=0, help="texts that begin alike (0: none do)")
    parser.add_argument("--repeat", type=int, default=1, help="times that each is run; all are shown (1)")
    options = parser.parse_args()
    results = []
    grid = itertools.product(options.ways, options.rows, options.limits, options.actors, range(options.repeat))
    for way, num_rows, limit, actors, _ in grid:
        if way in WORKER_OF or actors == options.actors[0]:
            actors_of_way = actors if way in WORKER_OF else 1
            results.append(run_once(options, way, num_rows, limit, actors_of_way))
            print(*cells_of(results[-1]), sep="  ", file=sys.stderr, flush=True)
    notes = [
        "rows/s: from the first request to the last answer; worker µs, all µs: CPU per row; then seconds: import, ray",
        "(joining or starting it), to first (request), asking, to done (from the last answer on), exit;",
        "overhead: all of the program's seconds but asking",
    ]
    cells = [cells_of(result) for result in results]
    show("stage", options=options, columns=COLUMNS, rows=cells, results=results, notes=notes)


if __name__ == "__main__":
    main()
