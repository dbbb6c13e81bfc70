"""Jobs that start their own servers: one that dies costs no row, and none is left when the job has ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ray_cluster import free_port

from nemo_llm_stage import ConfigError
from nemo_llm_stage.cli import main
from nemo_llm_stage.config.load import make_config
from nemo_llm_stage.errors import RunError
from nemo_llm_stage.run import run_config, verify_output

pytestmark = pytest.mark.slow

NUM_ROWS = 400


def job(folder: Path, servers: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """A job over rows that take a while, with servers of a port each, from a free one on."""
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(NUM_ROWS)))
    command = [sys.executable, "-m", "nemo_llm_stage", "simulate-server", "--host", "{host}", "--port", "{port}"]
    started = {"command": [*command, "--service-time-s", "0.2"], "num_gpus": 0, "count": 2, "stop_timeout": 1}
    return {
        "input": str(path),
        "output": str(folder / "out"),
        "servers": {**started, **(servers or {})},
        "client": {"max_concurrent_requests": 8},
        "model": "sim",
        "prompt": "Say {{ text }}",
        "output_column": "x",
        "engine": "local",
        "rows_per_partition": 50,
        **settings,
    }


def two_free_ports() -> int:
    """Return the first of two ports in a row that nobody listens on now."""
    while True:
        port = free_port()
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port + 1))
            return port


def pids_of(port: int) -> list[int]:
    """The servers, not their watchdogs, that were started with this port."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes().split(b"\0")
        if b"simulate-server" in words and str(port).encode() in words:
            found.append(int(path.parent.name))
    return found


def test_a_server_that_dies_costs_no_row(tmp_path: Path) -> None:
    """By `kill -9` after some answers: the other one takes its rows, a new one its place, and the timeline has why."""
    port = two_free_ports()
    config = make_config(job(tmp_path, {"port": port}))
    begun, pids = threading.Event(), list[int]()

    def kill() -> None:
        begun.wait(60)
        pids.extend(pids_of(port))
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    threading.Thread(target=lambda: _set_with(begun, tmp_path, (port, port + 1)), daemon=True).start()
    result = run_config(config, progress=False)
    killer.join()
    assert len(pids) == 1
    assert (result.counters.num_answered, result.counters.num_failed) == (NUM_ROWS, 0)
    assert verify_output(str(tmp_path / "out")).is_complete
    assert len([one for one in result.endpoints if one.num_answered]) == 2
    assert pids_of(port) == pids_of(port + 1) == []
    events = json.loads((tmp_path / ".out.nemo_llm_stage" / "status.json").read_text())["events"]
    told = [event["text"] for event in events if event["kind"] == "server"]
    assert any(text.startswith("server 1 has died (signal 9") for text in told), told


def _set_with(event: threading.Event, folder: Path, ports: Sequence[int]) -> None:
    """Set the event once servers with each of these ports have answers in the journals."""
    wanted = {f":{port}/v1".encode() for port in ports}
    while wanted:
        event.wait(0.05)
        for path in (folder / ".out.nemo_llm_stage" / "journal").glob("*/*.jsonl"):
            with suppress(FileNotFoundError):  # the partition is committed
                text = path.read_bytes()
                wanted -= {name for name in wanted if name in text}
    event.set()


def test_nothing_is_started_before_the_job_can_run(tmp_path: Path) -> None:
    """A column that is missing is told first; a finished job starts nothing."""
    port = free_port()
    with pytest.raises(ConfigError, match="txt"):
        run_config(make_config(job(tmp_path, {"command": ["false", "{port}"]}, prompt="{{ txt }}")), progress=False)
    config = job(tmp_path, {"port": port, "count": 1})
    assert run_config(make_config(config), progress=False).counters.num_answered == NUM_ROWS
    config["servers"]["command"] = ["false", "{port}"]
    assert run_config(make_config(config), progress=False).counters.num_answered == NUM_ROWS


def test_servers_that_cannot_start_are_told_with_their_own_words(tmp_path: Path) -> None:
    """Without waiting for anything."""
    command = ["sh", "-c", "echo 'error: unrecognized arguments: --fats' >&2; exit 2", "{port}"]
    with pytest.raises(RunError, match="wrong arguments: error: unrecognized arguments: --fats"):
        run_config(make_config(job(tmp_path, {"command": command})), progress=False)


def test_a_preview_starts_servers_too(tmp_path: Path) -> None:
    """And ends them."""
    port = free_port()
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(job(tmp_path, {"port": port, "count": 1})))
    result = CliRunner().invoke(main, ["preview", str(path), "-n", "1"])
    assert "user: Say row" in result.stdout
    assert pids_of(port) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_on_ray_they_run_in_actors(tmp_path: Path) -> None:
    """And the workers are told their addresses."""
    port = two_free_ports()
    result = run_config(make_config(job(tmp_path, {"port": port}, engine="ray", actors=2)), progress=False)
    assert result.counters.num_answered == NUM_ROWS
    assert len([one for one in result.endpoints if one.num_answered]) == 2
    assert pids_of(port) == pids_of(port + 1) == []
