"""
Holds one process of a server on its node: starts it, sees when it is healthy and when it has ended, and why.

One thread does all of that; others ask how it stands. In an actor or in this process: it knows no Ray.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nemo_llm_stage.servers.health import free_port, is_healthy
from nemo_llm_stage.servers.plan import ServerPlan, Spot
from nemo_llm_stage.servers.process import ServerProcess
from nemo_llm_stage.servers.why import NO_REASON, Reason, ended_words, reason_of
from nemo_llm_stage.text import names_a_secret, one_line

LOOK_S = 0.25
"""Between two looks at a server."""

LOOPBACK = "127.0.0.1"
_SHOW_IT = "other nodes cannot reach it; add --host {host} or --host 0.0.0.0 to its command"

STAY = "its command ended, though it has to run for as long as the server does"

TAIL_LINES = 4
MAX_TAIL_CHARS = 200
MIN_SECRET_CHARS = 6
HIDDEN = "***"

State = Literal["waiting", "starting", "healthy", "ended", "lost"]


@dataclass(frozen=True, slots=True)
class HostStatus:
    """
    How a process of a server stands.

    Attributes:
        state: ``waiting`` for its place, ``starting``, ``healthy``, ``ended``, or ``lost`` with its node.
        url: What a client takes as base_url.
        exit_code: Once it has ended.
        reason: Why it has ended.
        tail: The last lines of its log.
        log: Where the log is.
        pid: Of the process.
        version: Grows with each change.
    """

    state: State = "waiting"
    url: str = ""
    exit_code: int | None = None
    reason: Reason = NO_REASON
    tail: tuple[str, ...] = ()
    log: str = ""
    pid: int | None = None
    version: int = 0

    @property
    def why(self) -> str:
        """How and why it ended."""
        ended = "" if self.exit_code is None and self.reason.text else ended_words(self.exit_code)
        return ", ".join(filter(None, (ended, self.reason.text)))


class ServerHost:
    """
    Holds one process of a server.

    Args:
        plan: What it is.
        number: Of the server.
        rank: Of this node among those of the server.
        ip: Of this node, as clients reach it.
        gpu_ids: Of the GPUs that it has.
        log_folder: For its log; None for a temporary one, which is removed where the server never ended by itself.
    """

    def __init__(
        self,
        plan: ServerPlan,
        number: int = 0,
        rank: int = 0,
        ip: str = "127.0.0.1",
        gpu_ids: Sequence[str] = (),
        log_folder: str | None = None,
    ) -> None:
        self._plan, self._rank = plan, rank
        self._spot = Spot(number=number, rank=rank, ip=ip, gpu_ids=tuple(gpu_ids))
        self._is_temporary = log_folder is None
        folder = Path(log_folder or tempfile.mkdtemp(prefix="nemo-llm-stage-server-"))
        name = f"server-{number + 1}" + (f"-node-{rank}" if plan.num_nodes > 1 else "")
        self._log = folder / f"{name}.log"
        self._changed = threading.Condition()
        self._status = HostStatus(log=str(self._log))
        self._has_failed = False
        self._thread: threading.Thread | None = None
        self._is_stopping = threading.Event()

    def free_port(self) -> tuple[str, int]:
        """Return this node's address and a free port, for the processes of a server among each other."""
        return self._spot.ip, free_port() or 0

    def start(self, head_ip: str = "", head_port: int = 0) -> None:
        """End the process that runs, if any, and start a new one."""
        self.stop()
        self._is_stopping = threading.Event()
        self._spot = replace(self._spot, head_ip=head_ip or self._spot.ip, head_port=head_port)
        self._set(state="starting", exit_code=None, reason=NO_REASON, tail=(), pid=None)
        self._thread = threading.Thread(target=self._run, args=(self._is_stopping,), name="server", daemon=True)
        self._thread.start()

    def status(self, version: int = -1, timeout_s: float = 0.0) -> HostStatus:
        """Return how it stands, once that has another version than this, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._status.version != version, timeout_s)
            return self._status

    def begin_stop(self) -> None:
        """Ask the process to end; return at once."""
        self._is_stopping.set()

    def stop(self) -> None:
        """End the process, and return when it has ended. Safe to call twice."""
        self._is_stopping.set()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """End the process, and remove a log that nobody wants to read."""
        self.stop()
        if self._is_temporary and not self._has_failed:
            self._log.unlink(missing_ok=True)
            with suppress(OSError):
                self._log.parent.rmdir()

    def _run(self, is_stopping: threading.Event) -> None:
        try:
            self._start_and_watch(is_stopping)
        except Exception as error:  # noqa: BLE001 - whoever looks at the status has to know, and this is a thread
            self._end(None, Reason("it cannot be started", self._hide(str(error)), is_lasting=True))

    def _start_and_watch(self, is_stopping: threading.Event) -> None:
        wanted = None if self._plan.port is None else self._plan.port + self._spot.number
        port = free_port(wanted or self._spot.port or None) or (free_port() if wanted is None else None)
        if port is None and not self._rank:
            self._end(None, Reason("port taken", f"port {wanted} of {self._spot.ip} is another's, or not allowed"))
            return
        self._spot = replace(self._spot, port=port or 0)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        process = ServerProcess(
            self._plan.command(self._spot), self._environment(), self._log, self._plan.stop_timeout_s
        )
        try:
            self._watch(process, is_stopping)
        finally:
            process.stop()

    def _watch(self, process: ServerProcess, is_stopping: threading.Event) -> None:
        started_s = time.monotonic()
        is_up = self._rank > 0  # only the first node answers
        while not is_stopping.is_set():
            if process.wait(LOOK_S):
                reason = reason_of(self._tail(process))
                has_left = process.exit_code == 0 and not is_up and not reason.words
                self._end(process.exit_code, replace(reason, words=STAY) if has_left else reason)
                return
            if is_up:
                continue
            is_up = is_healthy(self._spot.ip, self._spot.port, self._plan.health_path)
            if is_up:
                self._set(state="healthy", url=f"http://{_in_url(self._spot.ip)}:{self._spot.port}/v1")
            elif self._is_hidden():
                self._end(None, Reason("it listens on 127.0.0.1 alone", _SHOW_IT, is_lasting=True))
                return
            elif time.monotonic() - started_s > self._plan.start_timeout_s:
                line = reason_of(self._tail(process)).line
                self._end(None, Reason(f"not healthy within {self._plan.start_timeout_s:g} s", line))
                return
            tail = [one_line(line, MAX_TAIL_CHARS) for line in self._tail(process) if line.strip()]
            self._set(pid=process.pid, tail=tuple(tail[-TAIL_LINES:]))

    def _is_hidden(self) -> bool:
        """Whether it is healthy for this node alone, so that no other node could ask it."""
        spot, path = self._spot, self._plan.health_path
        if spot.ip == LOOPBACK or not is_healthy(LOOPBACK, spot.port, path):
            return False
        return not is_healthy(spot.ip, spot.port, path)  # it may just have come up

    def _end(self, code: int | None, reason: Reason) -> None:
        self._has_failed = True
        self._set(state="ended", exit_code=code, reason=reason, pid=None)

    def _set(self, **facts: object) -> None:
        with self._changed:
            changed = replace(self._status, **facts)  # type: ignore[arg-type]
            if changed != self._status:
                self._status = replace(changed, version=self._status.version + 1)
                self._changed.notify_all()

    def _environment(self) -> dict[str, str]:
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(self._spot.gpu_ids)} if self._spot.gpu_ids else {}
        return {"PYTHONUNBUFFERED": "1", **os.environ, **gpus, **self._plan.env}

    def _tail(self, process: ServerProcess) -> list[str]:
        """Return the end of the log as it may be shown: without the values of variables whose names say secret."""
        return self._hide("\n".join(process.tail())).split("\n")

    def _hide(self, text: str) -> str:
        for name, value in self._environment().items():
            if names_a_secret(name) and len(value) >= MIN_SECRET_CHARS:
                text = text.replace(value, HIDDEN)
        return text


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
