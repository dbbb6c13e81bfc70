"""
One process of a server under its watchdog: started, looked at, ended.

Knows processes and files; knows nothing of health.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_WATCHDOG = Path(__file__).with_name("watchdog.py")
_TAIL_BYTES = 32_000
_AFTER_KILL_S = 10.0


class ServerProcess:
    """
    A command that ends with this process, however this one ends, and with all of its children.

    Args:
        words: The command.
        env: Its environment.
        log: File that its output is added to.
        grace_s: Seconds from SIGTERM to SIGKILL.

    Attributes:
        pid: Of the command; None before it is known.
        exit_code: None while it runs.
    """

    def __init__(self, words: Sequence[str], env: Mapping[str, str], log: Path, grace_s: float) -> None:
        self.pid: int | None = None
        self.exit_code: int | None = None
        self._log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        self._grace_s = grace_s
        self._told = b""
        self._report_fd, child_fd = os.pipe()
        settings = {"words": list(words), "grace_s": grace_s, "report_fd": child_fd}
        with log.open("ab") as file:
            starter = subprocess.Popen(  # noqa: S603 - the user's own command
                [sys.executable, "-P", "-S", str(_WATCHDOG), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=dict(env),
                pass_fds=[child_fd],
                start_new_session=True,  # Ctrl-C is for who started it, which then ends the server
            )
        os.close(child_fd)
        self._stdin = starter.stdin
        starter.wait()  # it leaves the watchdog behind, which is nobody's child

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end, for so long at most; return whether it has ended. Not for several threads."""
        if self.exit_code is not None:
            return True
        if self._has_news(timeout_s):
            self._hear(os.read(self._report_fd, 4096))
        return self.exit_code is not None

    def _has_news(self, timeout_s: float) -> bool:
        poll = select.poll()  # not select(), which knows only the first 1,024 files
        poll.register(self._report_fd, select.POLLIN)
        return bool(poll.poll(1000 * timeout_s))

    def _hear(self, data: bytes) -> None:
        *lines, self._told = (self._told + data).split(b"\n")
        for line in lines:
            facts = json.loads(line)
            self.pid = facts.get("pid", self.pid)
            self.exit_code = facts.get("exit", self.exit_code)
        if not data and self.exit_code is None:
            self.exit_code = -9  # the watchdog was killed, and the server with it

    def stop(self) -> None:
        """End it, and return when it has ended. Safe to call twice."""
        if self._stdin is not None:
            with suppress(OSError):
                self._stdin.close()
        while self.exit_code is None and self._report_fd >= 0:
            if not self._has_news(self._grace_s + _AFTER_KILL_S):
                break
            self._hear(os.read(self._report_fd, 4096))
        if self._report_fd >= 0:
            os.close(self._report_fd)
            self._report_fd = -1

    def tail(self) -> list[str]:
        """Return the last lines that it has written since it started; of a line that is cut there is nothing."""
        with suppress(OSError), self._log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            start = max(self._log_start, end - _TAIL_BYTES)
            file.seek(start)
            lines = file.read(_TAIL_BYTES).decode("utf-8", "replace").replace("\r", "\n").splitlines()
            return lines[1:] if start > self._log_start else lines  # half a line may hold half a secret
        return []
