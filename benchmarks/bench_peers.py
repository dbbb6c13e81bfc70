"""
The same rows through other tools and through this package: whole wall time, CPU of all processes, share of slots busy.

Each tool runs as a program of its own, started cold, by a short script in peers/ that uses it as its documentation
does. Those that are not installed are left out; --python NAME=PATH runs one by the interpreter of another environment,
so that tools whose requirements do not go together can be compared. On a server that answers at once (--mean-s 0) the
CPU tells; on one with slots and heavy-tailed times, the wall and the share of slots kept busy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from _data import write_texts
from _process import measure
from _report import make_parser, show
from _times import choose_times

from nemo_llm_stage.testing import ServerConfig, SimulatedServerProcess

FOLDER = Path(__file__).parent
COLUMNS = ("tool", "wall s", "asking s", "÷ ideal", "slots busy", "CPU s", "CPU ms/row", "requests", "connections")


@dataclass(frozen=True)
class Peer:
    """
    A tool to compare with.

    Attributes:
        module: Whose presence says that it is installed.
        install: What installs it.
    """

    module: str
    install: str


PEERS = {
    "ours_local": Peer("nemo_llm_stage", "nemo-llm-stage"),
    "ours_ray": Peer("nemo_llm_stage", "nemo-llm-stage"),
    "ours_map": Peer("nemo_llm_stage", "nemo-llm-stage"),
    "openai_script": Peer("openai", "openai"),
    "datatrove_runner": Peer(
        "datatrove.pipeline.inference", "datatrove httpx orjson aiofiles aiosqlite xxhash pyarrow"
    ),
    "nemo_curator_stage": Peer("nemo_curator.stages.synthetic", "nemo-curator"),
    "ray_data_llm": Peer("ray.data.llm", "'ray[llm]'"),
}


def is_installed(python: str, module: str) -> bool:
    """Whether the interpreter finds the module."""
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def command_of(name: str, python: str, source: Path, output: Path, base_url: str, slots: int) -> list[str]:
    """Return the program that runs a tool."""
    if name.startswith("ours"):
        way = name.removeprefix("ours_")
        settings = json.dumps({"limit": slots, "actors": 1, "rows_per_partition": None, "order": "auto"})
        return [python, str(FOLDER / "_ways.py"), way, str(source), str(output), base_url, settings]
    return [python, str(FOLDER / "peers" / f"{name}.py"), str(source), str(output), base_url, str(slots)]


def run_once(options: argparse.Namespace, name: str, python: str) -> dict[str, Any]:
    """Run one tool over the rows and return what it took."""
    source = write_texts(options.folder / f"{options.rows}", options.rows, num_words=options.words)
    output = options.folder / f"peer_{name}"
    for path in options.folder.glob(f"{output.name}*"):
        shutil.rmtree(path)
    output.mkdir(parents=True)
    if name.startswith("ours"):
        output.rmdir()
    config, ideal_s = server_of(options, source)
    with SimulatedServerProcess(config) as server:
        command = command_of(name, python, source, output, server.base_url, options.slots)
        path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"  # some start the `ray` of their environment
        cost = measure(command, env={"PATH": path}, timeout_s=options.timeout_s)
        stats = server.stats
    first, last = stats.first_start_monotonic_s, stats.last_end_monotonic_s
    assert first is not None
    assert last is not None
    return {
        "tool": name,
        "rows": options.rows,
        "num_answers": count_answers(output),
        "wall_s": cost.wall_s,
        "asking_s": last - first,
        "ideal_s": ideal_s,
        "share_busy": stats.occupancy if ideal_s else None,
        "cpu_s": cost.cpu_s,
        "cpu_ms_per_row": cost.cpu_s / options.rows * 1e3,
        "num_requests": stats.num_requests,
        "num_connections": stats.num_connections,
    }


def server_of(options: argparse.Namespace, source: Path) -> tuple[ServerConfig, float | None]:
    """Return the server, and how long all rows take it at the least; None where it answers at once."""
    if not options.mean_s:
        return ServerConfig(max_num_seqs=max(256, options.slots), accept_any_model=True, max_recorded=0), None
    texts = pq.read_table(source, columns=["text"]).column("text").to_pylist()
    prompts = [f"Summarize in one sentence:\n\n{text}" for text in texts]
    config, times = choose_times(prompts, options.slots, options.mean_s, options.sigma)
    return config, max(sum(times) / options.slots, max(times))


def count_answers(output: Path) -> int:
    """Return how many rows in the output have an answer."""
    tables = [pq.read_table(path, columns=["summary"]) for path in sorted(output.rglob("*.parquet"))]
    return sum(table.num_rows - table.column("summary").null_count for table in tables)


def cells_of(result: dict[str, Any]) -> list[str]:
    """Return a result as a row of the table."""
    ideal_s, busy = result["ideal_s"], result["share_busy"]
    return [
        result["tool"],
        f"{result['wall_s']:.1f}",
        f"{result['asking_s']:.1f}",
        "" if ideal_s is None else f"{result['wall_s'] / ideal_s:.2f}",
        "" if busy is None else f"{busy:.1%}",
        f"{result['cpu_s']:.1f}",
        f"{result['cpu_ms_per_row']:.2f}",
        f"{result['num_requests']:,}",
        f"{result['num_connections']:,}",
    ]


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--tools", nargs="+", choices=PEERS, default=list(PEERS), help="(all that are installed)")
    parser.add_argument("--rows", type=int, default=2000, help="(2000)")
    parser.add_argument("--words", type=int, default=200, help="words of each row's text (200)")
    parser.add_argument("--slots", type=int, default=64, help="of the server, and requests in flight (64)")
    parser.add_argument("--mean-s", type=float, default=0.368, help="seconds a request is served; 0: at once (0.368)")
    parser.add_argument("--sigma", type=float, default=1.0, help="of the lognormal times (1)")
    parser.add_argument("--python", nargs="+", default=[], metavar="NAME=PATH", help="interpreter that runs a tool")
    parser.add_argument("--repeat", type=int, default=1, help="times that each is run; all are shown (1)")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="a tool that takes longer is left out (600)")
    options = parser.parse_args()
    pythons = dict(text.partition("=")[::2] for text in options.python)
    results, notes = [], ["wall: from the cold start to the exit; ÷ ideal: wall ÷ max(all work / slots, longest row)"]
    for name in options.tools:
        python = pythons.get(name, sys.executable)
        if not is_installed(python, PEERS[name].module):
            notes.append(f"{name} left out, not installed: pip install {PEERS[name].install}")
            continue
        for _ in range(options.repeat):
            try:
                results.append(run_once(options, name, python))
            except subprocess.TimeoutExpired:
                notes.append(f"{name} took longer than {options.timeout_s:g} s")
                break
            except subprocess.CalledProcessError as error:
                notes.append(f"{name} failed with exit code {error.returncode}")
                break
            print(*cells_of(results[-1]), sep="  ", file=sys.stderr, flush=True)
            if results[-1]["num_answers"] != options.rows:
                notes.append(f"{name} gave {results[-1]['num_answers']:,} answers for {options.rows:,} rows")
    results.sort(key=lambda result: result["wall_s"])
    cells = [cells_of(result) for result in results]
    show("peers", options=options, columns=COLUMNS, rows=cells, results=results, notes=notes)


if __name__ == "__main__":
    main()
