"""
The process between a server and whoever started it: ends the server with all of its children, whatever happens.

Run as a file, not as a module of the package, so that it imports nothing else and starts at once. It leaves the process
group and the parent that it was started by: Ray kills the children of a worker that ends, and this one must outlive
that by the moment in which it ends the server. Its stdin is held open by who started it, and closes when that ends in
any way. What it has to tell goes to a pipe, one JSON object a line: ``{"pid": …}``, then ``{"exit": …}``.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
"""Source: linux/prctl.h."""

LOOK_S = 0.2
LEFTOVER_S = 1.0
"""For what a server that has ended by itself has left behind."""

NO_PROGRAM = 127


def main() -> None:
    """Start the command of the first argument, JSON as ``{"words", "grace_s", "report_fd"}``, and watch it."""
    settings = json.loads(sys.argv[1])
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGTERM, _note_end)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what a server's children leave behind comes to this process
    report_fd: int = settings["report_fd"]
    try:
        server = subprocess.Popen(  # noqa: S603 - the user's own command
            settings["words"], stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent
        )
    except OSError as error:
        sys.stderr.write(f"cannot start {settings['words'][0]!r}: {error.strerror}\n")
        sys.stderr.flush()
        _tell(report_fd, {"exit": NO_PROGRAM})
        os._exit(0)
    _tell(report_fd, {"pid": server.pid})
    code = _wait(server.pid)
    code = _end(server.pid, settings["grace_s"], None) if code is None else _end(server.pid, LEFTOVER_S, code)
    _tell(report_fd, {"exit": code})
    os._exit(0)


_told_to_end = False


def _note_end(*_: object) -> None:
    global _told_to_end
    _told_to_end = True


def _die_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _wait(pid: int) -> int | None:
    """Return the server's exit code when it ends by itself; None when this process is to end it."""
    while not _told_to_end and (not select.select([0], [], [], LOOK_S)[0] or os.read(0, 4096)):
        code = _reap(pid)
        if code is not None:
            return code
    return None


def _reap(pid: int) -> int | None:
    """Take note of all children that have ended; return the exit code of the server if it is among them."""
    code = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == pid:
                code = os.waitstatus_to_exitcode(ended[1])
    return code


def _end(pid: int, grace_s: float, code: int | None) -> int:
    """Ask what is left of the server's processes to end, kill it after a while, and return the exit code."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGTERM)
    give_up_s = time.monotonic() + grace_s
    while code is None or _descendants(os.getpid()):
        ended = _reap(pid)
        code = ended if code is None else code
        if time.monotonic() > give_up_s:
            _kill(pid)
        time.sleep(0.02)
    return code


def _kill(pid: int) -> None:
    for one in _descendants(os.getpid()):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """Return all processes below `pid`, also those in sessions of their own; none where the system cannot tell."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found


def _tell(report_fd: int, what: dict[str, int]) -> None:
    with suppress(OSError):  # nobody may be there to hear it
        os.write(report_fd, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main()
