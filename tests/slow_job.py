"""A job in a process of its own, slow enough to be watched, paused and killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner, Result

from nemo_llm_stage.cli import main
from nemo_llm_stage.testing import SimulatedServer

PATIENCE_S = 40.0


def invoke(*words: Any) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


class SlowJob:
    """Four requests at a time of 0.1 s each: 40 rows a second."""

    def __init__(self, folder: Path, server: SimulatedServer, stack: ExitStack) -> None:
        self.output = folder / "out"
        self.server = server
        self._folder = folder
        self._stack = stack

    def words(self, *options: Any, num_rows: int = 2000) -> list[str]:
        path = self._folder / f"in{num_rows}.parquet"
        if not path.exists():  # a job that is resumed wants the very same file
            pq.write_table(pa.table({"text": [f"row {number}" for number in range(num_rows)]}), path)
        words = {
            "--input": path,
            "--output": self.output,
            "--base-url": self.server.base_url,
            "--model": "sim",
            "--prompt": "Say {{ text }}",
            "--output-column": "x",
            "--engine": "local",
            "--max-concurrent-requests": 4,
            "--rows-per-partition": 20,
        }
        return ["run", *(str(part) for item in words.items() for part in item), *map(str, options)]

    def start(self, *options: Any, num_rows: int = 2000) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "nemo_llm_stage", *self.words(*options, num_rows=num_rows)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._stack.callback(end, process)
        return process

    def state(self) -> dict[str, Any]:
        """What ``status --json`` says; empty where there is no job yet."""
        result = invoke("status", self.output, "--json")
        return dict(json.loads(result.stdout)) if result.exit_code == 0 else {}

    def wait_for(self, is_there: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Return the first state for which `is_there` is true."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            state = self.state()
            if state and is_there(state):
                return state
            time.sleep(0.1)
        raise AssertionError(f"it never came: {self.state()}")

    def wait_until_running(self, num_rows: int = 5) -> dict[str, Any]:
        return self.wait_for(
            lambda state: state["state"] == "running" and (state.get("counters") or {}).get("num_rows", 0) >= num_rows
        )


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
