"""
The simulated server in a process of its own, so that its CPU time is not the client's and it can be killed.

The settings go over the child's stdin; the child ends when that closes, so it never outlives its parent.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import orjson

from nemo_llm_stage.errors import RunError
from nemo_llm_stage.testing.simulator.config import ServerConfig
from nemo_llm_stage.testing.simulator.faults import Fault
from nemo_llm_stage.testing.simulator.server import serve
from nemo_llm_stage.testing.simulator.stats import ServerStats

_OK = 200
_TIMEOUT_S = 30.0


class SimulatedServerProcess:
    """
    An OpenAI-compatible server in its own process; takes what `SimulatedServer` takes, but no functions.

    Args:
        config: How it behaves; None for the defaults.
        faults: What goes wrong.
        port: 0 takes a free one, and keeps it over restarts.
        settings: Fields of ServerConfig, over those of `config`.
    """

    def __init__(
        self, config: ServerConfig | None = None, *, faults: Sequence[Fault] = (), port: int = 0, **settings: Any
    ) -> None:
        self.config = replace(config or ServerConfig(), **settings)
        self.port = port
        self._faults = tuple(faults)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop it."""
        self.kill()

    @property
    def base_url(self) -> str:
        """What a client takes as base_url."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def pid(self) -> int | None:
        """The process's id; None where it was not started or has ended."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """
        Start the process, on the same port as before if there was one; its counts start at 0.

        Raises:
            RunError: It did not come up; its reason is on stderr.
        """
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "nemo_llm_stage.testing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        settings = {"config": self.config.to_dict(), "port": self.port, "faults": self._faults}
        process.stdin.write(orjson.dumps(settings) + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RunError(f"The simulated server did not start (exit code {self.wait()}).")
        self.port = int(line)

    def terminate(self) -> int:
        """End it by SIGTERM and return its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self.wait()

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would. Safe to call when it has ended."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def wait(self, timeout_s: float | None = _TIMEOUT_S) -> int:
        """
        Wait for its end and return its exit code.

        Raises:
            subprocess.TimeoutExpired: It runs on.
        """
        assert self._process is not None
        code = self._process.wait(timeout_s)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        return code

    @property
    def stats(self) -> ServerStats:
        """What it saw since it was started."""
        return ServerStats.from_dict(orjson.loads(self._call("GET", "/stats")))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What goes wrong. Assign to switch; the faults' clock starts anew."""
        return self._faults

    @faults.setter
    def faults(self, faults: Sequence[Fault]) -> None:
        self._faults = tuple(faults)
        self._call("POST", "/faults", orjson.dumps(self._faults))

    def reset(self) -> None:
        """Forget what was seen."""
        self._call("POST", "/reset")

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != _OK:
            raise RunError(f"The simulated server answered {response.status} to {path}: {answer!r}")
        return answer


def run_child() -> None:
    """Serve with the settings on the first line of stdin, and print the port."""
    settings = orjson.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    faults = [Fault.of(fault) for fault in settings["faults"]]
    serve(ServerConfig(**settings["config"]), port=settings["port"], faults=faults, on_ready=_tell_port)


def _tell_port(base_url: str) -> None:
    sys.stdout.write(base_url.removesuffix("/v1").rpartition(":")[2] + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    os.read(0, 1)  # not by sys.stdin, whose lock would be missed at interpreter exit
    os._exit(0)
