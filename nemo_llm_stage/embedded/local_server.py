"""
The embedded model as an OpenAI-compatible server on this machine's CPU, in a process of its own.

Knows how that process is started, watched and ended; the model runs in `child.py`.

Speed, measured 2026-11 with SmolLM2-135M-Instruct (Q4_1) on 2 shared CPUs of an AMD EPYC (AVX2), one to three runs
each: ready in 1 to 1.4 s; one request alone reads 155 to 160 and writes 30 to 48 tokens/s; 24 rows of about 80 tokens
in and 19 out cost 23 to 27 CPU seconds. CPU time of flash attention, an 8-bit cache and other batch sizes differs by no
more than that of equal runs (10 %). Beside 8 slots, 1 cost 12 % less and 16 cost 8 % more: fewer reuse more of the
beginning that prompts have in common.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import IO, Self

from nemo_llm_stage.embedded.weights import MODEL, fetch_weights
from nemo_llm_stage.errors import ConfigError, RunError

_CHILD = Path(__file__).with_name("child.py")
_MAX_THREADS = 4  # by default; more were not measured
_LOG_BYTES = 4_000


class LocalServer:
    """
    A GGUF model served on 127.0.0.1 for as long as the ``with`` block runs.

    Chat and text completions, streaming, JSON-schema answers, ``/metrics``. The serving process ends with this one,
    however this one ends; requests under way then fail at once instead of hanging.

    Args:
        gguf: Model file; None takes the embedded SmolLM2-135M-Instruct, fetched on first use.
        port: 0 takes a free one.
        num_threads: None takes the CPUs this process may use, at most 4.
        num_slots: Requests answered at the same time; more wait in line.
        context_per_slot: Tokens that a prompt and its answer may have together.
        start_timeout_s: Seconds until the model must be loaded.

    Attributes:
        base_url: What a client takes as base_url; empty before the start.
        model: The model's name on the server.
    """

    def __init__(
        self,
        gguf: Path | str | None = None,
        *,
        port: int = 0,
        num_threads: int | None = None,
        num_slots: int = 4,
        context_per_slot: int = 2048,
        start_timeout_s: float = 120.0,
    ) -> None:
        self.gguf = None if gguf is None else Path(gguf)
        self.model = MODEL if self.gguf is None else self.gguf.stem
        self.base_url = ""
        self.num_slots = num_slots
        self._settings = {
            "model": self.model,
            "port": port,
            "num_threads": num_threads or min(_num_cpus(), _MAX_THREADS),
            "num_slots": num_slots,
            "context_per_slot": context_per_slot,
        }
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """End it."""
        self.close()

    @property
    def pid(self) -> int | None:
        """The serving process's id; None where it does not run."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """
        Start the process and return when it answers requests.

        Raises:
            ConfigError: xllamacpp is not installed, there is no such model file, or the weights cannot be fetched.
            RunError: It did not come up; carries its last log lines.
        """
        if self.gguf:
            _check_gguf(self.gguf)
        if importlib.util.find_spec("xllamacpp") is None:
            raise ConfigError("The local model needs xllamacpp: pip install 'nemo-llm-stage[local]'")
        settings = {**self._settings, "gguf": str(self.gguf or fetch_weights()), "parent_pid": os.getpid()}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (without a name: nothing is ever left behind)
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", str(_CHILD), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for the caller, which then ends the server
            # Threads that wait for each other spin only shortly. With the default, 4 rows took 39 s beside others'
            # work and 71 s beside one busy process more; with this, 7 and 8 s (medians of 2 or 3 runs). On free CPUs
            # one request took 3.4 s with the default, 3.5 and 4.2 s with this.
            env={"GOMP_SPINCOUNT": "1000", **os.environ},
        )
        try:
            self.base_url = f"{self._wait_for_address()}/v1"
        except BaseException:
            self.close()
            raise

    def wait(self) -> int:
        """Wait until the serving process ends by itself or is killed, and return its exit code."""
        assert self._process is not None
        return self._process.wait()

    def close(self) -> None:
        """End the process at once; requests under way fail. Safe to call twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout, self._log):
                if stream is not None:
                    stream.close()

    def log_tail(self) -> str:
        """Return the last warnings and errors that the running server logged."""
        assert self._log is not None
        log = os.pread(self._log.fileno(), _LOG_BYTES, max(0, os.fstat(self._log.fileno()).st_size - _LOG_BYTES))
        return "\n".join(log.decode(errors="replace").splitlines()[-8:])

    def _wait_for_address(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        is_told, _, _ = select.select([self._process.stdout], [], [], self._start_timeout_s)
        if not is_told:
            raise RunError(
                f"The local model server was not ready within {self._start_timeout_s:g} s. "
                f"Its last log lines:\n{self.log_tail()}"
            )
        address = self._process.stdout.readline().decode().strip()
        if not address:
            raise RunError(
                f"The local model server did not start ({_how_ended(self._process.wait())}). "
                f"Its last log lines:\n{self.log_tail()}"
            )
        return address


def serve_forever(gguf: Path | str | None = None, *, port: int = 0) -> None:
    """
    Serve a model until Ctrl-C or SIGTERM; print its address, its name and a request to try.

    Call it from the main thread.

    Args:
        gguf: As in `LocalServer`.
        port: As in `LocalServer`.

    Raises:
        ConfigError: As in `LocalServer.start`.
        RunError: As in `LocalServer.start`, or the serving process ended by itself.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with LocalServer(gguf, port=port) as server:
            sys.stdout.write(_welcome(server))
            sys.stdout.flush()
            code = server.wait()
            raise RunError(f"The local model server ended ({_how_ended(code)}).\n{server.log_tail()}")
    except KeyboardInterrupt:
        sys.stdout.write("Stopped.\n")
    finally:
        signal.signal(signal.SIGTERM, before)


def _welcome(server: LocalServer) -> str:
    request = {"model": server.model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 32}
    return (
        f"{server.model} is served at {server.base_url} ({server.num_slots} requests at once; Ctrl-C ends it). Try:\n"
        f"  curl {server.base_url}/chat/completions -H 'Content-Type: application/json' \\\n"
        f"    -d '{json.dumps(request)}'\n"
    )


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _check_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}")
    if not is_gguf:
        raise ConfigError(f"{path}: not a GGUF model file")


def _how_ended(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
