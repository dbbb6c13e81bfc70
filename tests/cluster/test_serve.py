"""Servers on a cluster of two nodes: one server over both, and none left when its driver is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ray_cluster import RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TOY = Path(__file__).parents[1] / "servers" / "toy_server.py"
TIMEOUT_S = 120.0


def until(is_true: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + TIMEOUT_S
    while not is_true():
        assert time.monotonic() < give_up_s
        time.sleep(0.1)


def test_a_server_over_two_nodes_ends_with_its_driver(tmp_path: Path) -> None:
    """Each node runs its part with its rank; `kill -9` of the driver leaves neither."""
    file, endpoints = tmp_path / "servers.yaml", tmp_path / "endpoints.txt"
    parts = f"{sys.executable} -S {TOY} {{port}} rank {{node_rank}} of {{num_nodes}} at {{head_ip}} in {tmp_path}"
    file.write_text(json.dumps({"command": parts, "num_nodes": 2, "num_gpus": 0, "num_cpus": 1, "stop_timeout": 1}))

    def running() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"in {tmp_path}" in text and "watchdog" not in text:
                found.append(text.partition(" rank ")[2].partition(" at ")[0])
        return sorted(found)

    with RayCluster(num_cpus=1) as cluster:
        cluster.add_node(num_cpus=1)
        words = [sys.executable, "-m", "nemo_llm_stage", "serve", str(file), "--endpoints", str(endpoints)]
        driver = subprocess.Popen([*words, "--address", cluster.address], env=cluster.env)
        until(lambda: endpoints.exists() and "http://" in endpoints.read_text())
        until(lambda: running() == ["0 of 2", "1 of 2"])
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        until(lambda: running() == [])
