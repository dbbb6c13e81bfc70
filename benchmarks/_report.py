"""
What every benchmark ends with: a table for people, one line of JSON for machines, a plot where one is asked for.

The JSON says where, when and on what commit it was measured. Knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

WIDTH_IN_FILES = 180
"""Characters; the widest table has 16 columns."""

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("nemo-llm-stage", "ray", "pyarrow", "pandas", "openai", "orjson", "uvloop", "httptools", "jinja2")
WORK_FOLDER = Path(tempfile.gettempdir()) / "nemo_llm_stage_bench"
"""Where inputs and outputs of a benchmark lie unless the user names another place."""


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the line of JSON to this file too")
    parser.add_argument("--folder", type=Path, default=WORK_FOLDER, help=f"for inputs and outputs ({WORK_FOLDER})")
    return parser


def add_plot_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--plot``."""
    parser.add_argument("--plot", type=Path, metavar="FILE", help=f"draw {what} (.png or .svg; needs matplotlib)")


def describe_machine() -> dict[str, Any]:
    """Return where this is measured: time, commit, hardware, load and versions."""
    versions = {name: version for name in PACKAGES if (version := _version_of(name))}
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu_name(),
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def show(
    benchmark: str,
    *,
    options: argparse.Namespace,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    results: Any,
    notes: Sequence[str] = (),
) -> None:
    """
    Print the table on stderr and the JSON on stdout.

    Args:
        benchmark: Name, without ``bench_``.
        options: As parsed; they are the settings in the JSON.
        columns: Heads of the table; the first column is flush left.
        rows: Cells of the table, as they are to be read.
        results: What was measured, JSON-able.
        notes: Lines under the table.
    """
    machine = describe_machine()
    console = Console(stderr=True)
    if not console.is_terminal:  # a file is read with a scroll bar
        console = Console(stderr=True, width=WIDTH_IN_FILES)
    table = Table(title=f"bench_{benchmark} · {machine['at'][:10]} · {machine['commit']} · {machine['cpu']}")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    settings = {name: value for name, value in vars(options).items() if name not in {"json", "plot", "folder"}}
    line = json.dumps({"benchmark": benchmark, **machine, "settings": settings, "results": results}, default=str)
    print(line)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        with options.json.open("a") as file:
            file.write(line + "\n")


def new_figure(num_rows: int, *, height: float = 3.0) -> tuple[Figure, Sequence[Axes]]:
    """
    Return a figure and its axes, one below the other, without a display.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("--plot needs matplotlib: pip install 'nemo-llm-stage[report]'")
    figure = Figure(figsize=(9, height * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(num_rows, squeeze=False)[:, 0])


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"plot: {path}", file=sys.stderr)


def percentiles(values: Sequence[float], points: Sequence[int] = (50, 90, 99)) -> Mapping[str, float | None]:
    """Return the nearest-rank percentiles of `values`; None where there are none."""
    ordered = sorted(values)
    return {f"p{point}": ordered[max(0, -(-len(ordered) * point // 100) - 1)] if ordered else None for point in points}


def _version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.machine()
