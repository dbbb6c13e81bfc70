"""Each benchmark says what it is for, and runs on a few rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_llm_stage.testing import SimulatedServerProcess

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("bench_*.py"))


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options], capture_output=True, text=True, env=environment
    )


def figures_of(script: str, *options: str) -> dict[str, Any]:
    result = run(script, *options)
    assert result.returncode == 0, result.stderr
    figures: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert {"benchmark", "at", "commit", "cpu", "versions", "settings", "results"} <= figures.keys()
    return figures


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_is_measured(script: str) -> None:
    """--help works without any optional package."""
    result = run(script, "--help")
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout


@pytest.mark.slow
def test_saturation_sets_a_job_beside_the_barrier_and_the_greedy_bound(tmp_path: Path) -> None:
    """Every row is asked once, and no run ends before greedy FIFO could."""
    options = ("--rows", "40", "--mean-s", "0.02", "--slots", "4", "--actors", "1", "2", "--partitions", "4")
    figures = figures_of("bench_saturation.py", *options, "--folder", str(tmp_path))
    assert [result["engine"] for result in figures["results"]] == ["local", "local", "barrier"]
    assert {result["num_requests"] for result in figures["results"]} == {40}
    assert all(result["makespan_s"] > 0.95 * result["lower_bound_s"] for result in figures["results"])


@pytest.mark.slow
def test_stage_tells_the_cost_of_a_row(tmp_path: Path) -> None:
    """The CPU of the worker is part of that of all processes."""
    options = ("--rows", "50", "--words", "10", "--ways", "process", "local", "--folder", str(tmp_path))
    results = figures_of("bench_stage.py", *options)["results"]
    assert [result["num_requests"] for result in results] == [50, 50]
    assert all(0 < result["worker_cpu_us_per_row"] < result["all_cpu_us_per_row"] for result in results)


@pytest.mark.slow
def test_the_order_by_prefix_gains_what_the_best_order_does(tmp_path: Path) -> None:
    """At servers whose caches are small, in virtual time; and costs nothing where nothing is shared."""
    options = ("--documents", "30", "--questions", "20", "--loads", "documents", "nothing", "--seeds", "1")
    results = figures_of("bench_prefix.py", *options, "--folder", str(tmp_path))["results"]
    gains = {(result["load"], result["servers"], result["order"]): result for result in results}
    assert gains["documents", 1, "auto"]["gain"] > 1.5
    assert gains["documents", 4, "auto"]["gain"] > 1.5
    assert all(gains["documents", num, "auto"]["of_best"] > 0.9 for num in (1, 4))
    assert all(gains["nothing", num, "auto"]["gain"] > 0.98 for num in (1, 4))


@pytest.mark.slow
def test_server_finds_rates_gauges_and_cost_at_each_concurrency(tmp_path: Path) -> None:
    """The model is found, the server's own gauges and an offline run stand beside."""
    offline = tmp_path / "offline.json"
    offline.write_text(json.dumps({"requests_per_second": 1000.0}))
    options = ("--concurrency", "2", "8", "--rounds", "1", "--gpu-price", "2", "--compare", str(offline))
    with SimulatedServerProcess(scheduler="batching", speedup=20.0) as server:
        results = figures_of("bench_server.py", "--base-url", server.base_url, *options)["results"]
        assert server.stats.num_requests == 2 * 64
    assert results["model"] == "sim"
    assert results["knee"] in {2, 8}
    for level in results["levels"]:
        assert level["rows_per_s"] > 0
        assert level["output_tokens_per_s"] > 0
        assert level["dollars_per_million_rows"] > 0
        assert level["errors"] == {}


@pytest.mark.slow
def test_peers_leaves_out_what_is_not_installed(tmp_path: Path) -> None:
    """A tool that the interpreter cannot import is told with how to install it; the others answer every row."""
    options = ("--rows", "20", "--words", "10", "--mean-s", "0", "--folder", str(tmp_path))
    result = run("bench_peers.py", "--tools", "ours_local", "openai_script", "datatrove_runner", *options)
    results = json.loads(result.stdout.splitlines()[-1])["results"]
    assert {"ours_local", "openai_script"} <= {tool["tool"] for tool in results}
    assert all(tool["num_answers"] == 20 for tool in results)
    if len(results) == 2:
        assert "pip install datatrove" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--on-disk", "--partitions", "3"), ("--committed", "3")])
def test_store_runs_resumes_and_verifies(tmp_path: Path, options: tuple[str, ...]) -> None:
    """The benchmark itself checks that every row is there."""
    results = figures_of("bench_store.py", *options, "--rows", "2", "--service-s", "0", "--folder", str(tmp_path))
    assert all(step["seconds"] > 0 for step in results["results"].values())


@pytest.mark.slow
def test_store_counts_calls_and_bytes_at_a_server_that_runs(tmp_path: Path, s3_server: str) -> None:
    """Through its proxy."""
    options = ("--endpoint", s3_server, "--latency-s", "0.01", "--partitions", "3", "--rows", "2", "--service-s", "0")
    results = figures_of("bench_store.py", *options, "--folder", str(tmp_path))["results"]
    assert results["verify"]["calls"]["GET out"] == 3
    assert results["verify"]["bytes"]["received"] > 3 * 1000


@pytest.mark.slow
def test_scale_keeps_all_servers_full_to_the_end(tmp_path: Path) -> None:
    """One slow, dead, flapping or joining server costs the others little, and the driver is not kept busy."""
    options = ("--servers", "16", "--slots", "8", "--rows-per-slot", "60", "--folder", str(tmp_path))
    for result in figures_of("bench_scale.py", *options)["results"]:
        assert result["makespan_s"] < 1.1 * result["bound_s"], result
        assert result["num_second_sends"] <= 0.02 * result["num_rows"]
        assert result["num_calls"] < 20 * 16 * result["makespan_s"]


@pytest.mark.slow
def test_watch_sets_slices_of_one_job_side_by_side(tmp_path: Path) -> None:
    """In pairs, one of each watched; there is a screen in that one only."""
    options = ("--rows", "40000", "--pairs", "3", "--slice-s", "0.5", "--folder", str(tmp_path))
    results = figures_of("bench_watch.py", *options)["results"]
    slices = results["slices"]
    assert len(slices) == 6
    assert all(one["is_watched"] != other["is_watched"] for one, other in zip(slices[::2], slices[1::2], strict=True))
    for each in slices:
        assert each["num_rows"] >= 1000
        assert ("Thread screen" in each["threads_s"]) == each["is_watched"]
    assert results["figures"]["num_pairs"] == 3
