"""
A Ray cluster of several nodes on this machine, each in processes of its own that can be killed: `RayCluster`.

Nothing of it is shared with other Rays of this machine, and no other is stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.error import URLError
from urllib.request import Request, urlopen

BIN = Path(sys.executable).parent
TOKEN = "ab" * 32
START_TIMEOUT_S = 120.0


class RayCluster:
    """
    A head node with a dashboard, and as many others as are added.

    Args:
        num_cpus: Of the head.
        env: Beside this process's environment; every node has it. This environment's Python comes first on the PATH.

    Attributes:
        folder: Has all logs.
        address: For drivers.
        dashboard: URL.
        metrics: URL of what the head gives to Prometheus.
        env: What a driver of this cluster needs in its environment.
    """

    def __init__(self, num_cpus: int = 2, env: dict[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets want a short path
        port, dashboard_port = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self.dashboard = f"http://127.0.0.1:{dashboard_port}"
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self.env = {**os.environ, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, **(env or {})}
        self.env.pop("RAY_ADDRESS", None)
        head = ["--head", "--port", str(port), "--dashboard-port", str(dashboard_port), "--num-cpus", str(num_cpus)]
        self._nodes = {0: self._start(head)}
        self._num_started = 1

    def __enter__(self) -> Self:
        """Return when the dashboard answers and knows the head: a node that joins earlier gets in its way."""
        give_up_s = time.monotonic() + START_TIMEOUT_S
        while not self._is_up():
            if time.monotonic() > give_up_s or self._nodes[0].poll() is not None:
                self.__exit__()
                raise RuntimeError("the Ray cluster did not start")
            time.sleep(0.2)
        return self

    def __exit__(self, *exc: object) -> None:
        """Kill all of its processes."""
        for node in reversed(self._nodes.values()):
            kill_tree(node.pid)
            node.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def node_numbers(self) -> list[int]:
        """The nodes that have not been killed; the head comes first."""
        return list(self._nodes)

    def add_node(self, num_cpus: int = 1) -> int:
        """Start another node and return its number when it has joined: two at once get in each other's way."""
        before = self._alive()
        number = self._num_started
        self._num_started += 1
        self._nodes[number] = self._start(["--address", self.address, "--num-cpus", str(num_cpus)])
        give_up_s = time.monotonic() + START_TIMEOUT_S
        while self._alive() <= before:
            if time.monotonic() > give_up_s or self._nodes[number].poll() is not None:
                raise RuntimeError("the node has not joined")
            time.sleep(0.2)
        return number

    def kill_node(self, number: int) -> None:
        """`kill -9` its raylet and everything that runs on it."""
        node = self._nodes.pop(number)
        kill_tree(node.pid)
        node.wait()

    def worker_pids(self, number: int) -> list[int]:
        """Return the processes on a node that Ray calls partition actors."""
        return [pid for pid in tree_of(self._nodes[number].pid) if b"PartitionActor" in command_of(pid)]

    def ask(self, path: str) -> bytes:
        """Return what the dashboard answers to a GET."""
        request = Request(f"{self.dashboard}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urlopen(request, timeout=30) as answer:
            body: bytes = answer.read()
        return body

    def _start(self, words: list[str]) -> subprocess.Popen[bytes]:
        folder = ["--temp-dir", str(self.folder)] if "--head" in words else []
        metrics_port = free_port()
        if "--head" in words:
            self.metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        agents = [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={metrics_port}"]
        command = [str(BIN / "ray"), "start", *words, *folder, *agents, "--block", "--disable-usage-stats"]
        log = self.folder / f"start-{len(list(self.folder.glob('start-*.log')))}.log"
        with log.open("wb") as file:
            return subprocess.Popen(command, env=self.env, stdout=file, stderr=file, start_new_session=True)

    def _alive(self) -> set[str]:
        nodes = json.loads(self.ask("/api/v0/nodes"))["data"]["result"]["result"]
        return {node["node_id"] for node in nodes if node["state"] == "ALIVE"}

    def _is_up(self) -> bool:
        with suppress(URLError, OSError):
            return bool(self._alive())
        return False


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def tree_of(pid: int) -> Iterator[int]:
    """Yield `pid` and all processes below it."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree_of(int(child))


def command_of(pid: int) -> bytes:
    """Return the command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill_tree(pid: int) -> None:
    """`kill -9` a process and all below it."""
    pids = list(tree_of(pid))
    for one in pids:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
