"""
What share of the servers' capacity does a job keep busy, and how near to the lower bound does it end?

A simulated server with SLOTS slots serves each request for a time of its own, the same at each run. A job asks it with
as many requests in flight as there are slots, over partitions of several sizes, by one or more actors. The server tells
how long its slots were busy. Beside it stand the lower bound, max(all work / slots, longest row), and greedy FIFO: the
next row starts the moment that a slot is free, which no client can beat without knowing the rows' lengths. `barrier`
asks the same rows with one gather per partition. Engines: local (in this process; several actors are several workers
with a client and a loop each) and ray.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from _data import write_texts
from _report import add_plot_option, make_parser, new_figure, save_figure, show
from _times import MODEL, choose_times, greedy_makespan_s

from nemo_llm_stage import AsyncHTTPClient, LLMStage
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.job.prepare import prepare_job
from nemo_llm_stage.testing import ServerStats, SimulatedServerProcess
from nemo_llm_stage.worker.engine import Engine
from nemo_llm_stage.worker.in_process import LocalEngine
from nemo_llm_stage.worker.spec import spec_of

PROMPT = "{{ text }}"
COLUMNS = ("run", "slots", "sigma", "busy", "greedy", "÷ greedy", "before tail", "seconds", "÷ bound")


def run_once(options: argparse.Namespace, engine: str, slots: int, actors: int, partitions: int, sigma: float) -> Any:
    """Ask all rows once and return what came of it, JSON-able, and the server's timeline."""
    source = write_texts(options.folder, options.rows, num_words=20)
    texts = pq.read_table(source, columns=["text"]).column("text").to_pylist()
    config, times = choose_times(texts, slots, options.mean_s, sigma)
    rows_per_partition = -(-options.rows // partitions)
    with SimulatedServerProcess(config) as server:
        if engine == "barrier":
            asyncio.run(ask_with_barrier(server.base_url, texts, slots, rows_per_partition))
        else:
            run_engine(make_engine(engine, actors), source, options, server.base_url, slots, partitions)
        stats = server.stats
    return summarize(stats, times, slots) | {
        "engine": engine, "slots": slots, "actors": actors, "partitions": partitions, "sigma": sigma,
    }, stats.timeline  # fmt: skip


def make_engine(name: str, actors: int) -> Engine:
    """Return the engine that `name` means."""
    if name == "ray":
        from nemo_llm_stage.cluster.ray_engine import RayEngine

        return RayEngine(actors, num_cpus_per_actor=0.1)
    return LocalEngine(actors)


def run_engine(
    engine: Engine, source: Path, options: argparse.Namespace, base_url: str, limit: int, partitions: int
) -> None:
    """Run the rows as a job."""
    output = options.folder / "saturation_output"
    shutil.rmtree(output, ignore_errors=True)
    client = AsyncHTTPClient(base_url, max_concurrent_requests=limit)
    stage = LLMStage(client=client, model=MODEL, prompt=PROMPT, output_column="answer")
    job = prepare_job(stage, source, output, JobSettings(rows_per_partition=-(-options.rows // partitions)))
    stage.close()
    num_rows = sum(report.counters.num_answered for report in engine.run(spec_of(job), job.pending, lambda _: None))
    if num_rows != options.rows:
        raise SystemExit(f"only {num_rows} of {options.rows} rows were answered")


async def ask_with_barrier(base_url: str, texts: Sequence[str], slots: int, rows_per_partition: int) -> None:
    """Ask partition after partition, each with one gather: what a stage per batch does."""
    client = AsyncHTTPClient(base_url, max_concurrent_requests=slots)
    for first in range(0, len(texts), rows_per_partition):
        partition = texts[first : first + rows_per_partition]
        turns = [[{"role": "user", "content": text}] for text in partition]
        await asyncio.gather(*(client.query_model(messages=messages, model=MODEL) for messages in turns))
    await client.aclose()


def summarize(stats: ServerStats, times: Sequence[float], slots: int) -> dict[str, Any]:
    """Return shares and makespan beside their bounds."""
    assert stats.first_start_monotonic_s is not None
    assert stats.last_end_monotonic_s is not None
    makespan_s = stats.last_end_monotonic_s - stats.first_start_monotonic_s
    bound_s = max(sum(times) / slots, max(times))
    greedy_s = greedy_makespan_s(times, slots)
    return {
        "makespan_s": makespan_s,
        "lower_bound_s": bound_s,
        "greedy_makespan_s": greedy_s,
        "share": sum(times) / slots / makespan_s,
        "greedy_share": sum(times) / slots / greedy_s,
        "share_of_greedy": greedy_s / makespan_s,
        "share_before_tail": stats.occupancy_before_tail,
        "max_in_flight": stats.max_in_flight,
        "num_requests": stats.num_requests,
        "num_connections": stats.num_connections,
    }


def name_of(result: dict[str, Any]) -> str:
    """Return a run's name for people."""
    actors = "actor" if result["actors"] == 1 else "actors"
    return f"{result['engine']}, {result['actors']} {actors}, {result['partitions']} partitions"


def cells_of(result: dict[str, Any]) -> list[str]:
    """Return a result as a row of the table."""
    return [
        name_of(result),
        *(f"{result[name]}" for name in ("slots", "sigma")),
        *(f"{result[name]:.3f}" for name in ("share", "greedy_share", "share_of_greedy", "share_before_tail")),
        f"{result['makespan_s']:.2f}",
        f"{result['makespan_s'] / result['lower_bound_s']:.3f}",
    ]


def draw(timelines: Sequence[tuple[dict[str, Any], list[tuple[float, int, int]]]], path: Path) -> None:
    """Draw the slots in use over time, a panel a run."""
    figure, panels = new_figure(len(timelines), height=2.0)
    longest_s = max(timeline[-1][0] - timeline[0][0] for _, timeline in timelines)
    for panel, (result, timeline) in zip(panels, timelines, strict=True):
        begin_s = timeline[0][0]
        panel.fill_between(
            [at - begin_s for at, _, _ in timeline], [running for _, _, running in timeline], step="post"
        )
        panel.set(xlim=(0, longest_s), ylim=(0, result["slots"] * 1.05), ylabel="slots in use")
        panel.set_title(
            f"{name_of(result)}: {result['share']:.1%} of the slots busy, {result['makespan_s']:.1f} s", fontsize=10
        )
    panels[-1].set_xlabel("seconds since the first request")
    save_figure(figure, path)


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="rows of each run (2000)")
    parser.add_argument("--mean-s", type=float, default=0.368, help="mean seconds that a request is served (0.368)")
    parser.add_argument(
        "--sigmas", type=float, nargs="+", default=[1.0], help="of the lognormal times; 0: constant (1)"
    )
    parser.add_argument("--slots", type=int, nargs="+", default=[64], help="of the server (64)")
    parser.add_argument("--partitions", type=int, nargs="+", default=[10, 100], help="cut the rows into (10 100)")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 4], help="each with slots/actors permits (1 4)")
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=("local", "ray", "barrier"),
        default=["local", "barrier"],
        help="(local barrier)",
    )
    parser.add_argument("--repeat", type=int, default=1, help="times that each is run; all are shown (1)")
    add_plot_option(parser, "requests in flight over time, a panel for each run")
    options = parser.parse_args()
    runs = []
    grid = itertools.product(
        options.engines, options.slots, options.actors, options.partitions, options.sigmas, range(options.repeat)
    )
    for engine, slots, actors, partitions, sigma, _ in grid:
        if engine == "barrier" and (actors, partitions) != (options.actors[0], options.partitions[0]):
            continue  # it knows no actors, and with small partitions it takes minutes
        runs.append(run_once(options, engine, slots, 1 if engine == "barrier" else actors, partitions, sigma))
        print(*cells_of(runs[-1][0]), sep="  ", file=sys.stderr, flush=True)
    results = [result for result, _ in runs]
    if options.plot is not None:
        draw(runs, options.plot)
    notes = [
        "busy: share of all slots from the first request to the last answer; greedy: the same for greedy FIFO;",
        "÷ greedy: greedy's makespan ÷ this one's; before tail: busy share up to the start of the last row;",
        "÷ bound: makespan ÷ max(all work / slots, longest row)",
    ]
    cells = [cells_of(result) for result in results]
    show("saturation", options=options, columns=COLUMNS, rows=cells, results=results, notes=notes)


if __name__ == "__main__":
    main()
