"""
Which process runs a job, and whether it still does. A process is known by its host, its id and its start.

Knows processes; knows nothing of jobs.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """
    A process, as others can tell it from any other one.

    Attributes:
        host: The host's name, for people.
        machine: Tells machines and containers with the same name apart, and one boot from the next.
        pid: The process id.
        started: When it started, in the kernel's own unit; empty where the system does not tell.
    """

    host: str
    machine: str
    pid: int
    started: str = ""

    def is_alive(self) -> bool | None:
        """Whether it still runs; None where this process cannot tell, because it is on another machine."""
        if self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's
        state, started = _state_and_start(self.pid)
        return state not in ("Z", "X") and started == self.started

    def is_stopped(self) -> bool:
        """Whether it is known to stand still (SIGSTOP, a debugger), so that it cannot answer."""
        return self.machine == _machine() and _state_and_start(self.pid)[0] in ("T", "t")


def this_process() -> ProcessIdentity:
    """Return the identity of this process."""
    return ProcessIdentity(socket.gethostname(), _machine(), os.getpid(), _state_and_start(os.getpid())[1])


def _machine() -> str:
    """Return the host, its boot and its process namespace in one word."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:  # not Linux
        pass
    return "/".join(parts)


def _state_and_start(pid: int) -> tuple[str, str]:
    """Return the state letter and the start of a process, from ``/proc``; empty where there is none. See proc(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
