"""
What a program costs, with every process it starts: CPU seconds, wall seconds, peak memory.

The program runs under a launcher (this file as a script) that adopts its orphans, so that daemons such as Ray's are
waited for and their CPU time is the kernel's own count. Those that nobody waits for are counted by samples of /proc,
up to 0.2 s before their end. Linux; elsewhere orphans are missing from the count.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_S = 0.2
END_GRACE_S = 20.0
"""How long daemons may take to end after the program; then they are killed."""

_PR_SET_CHILD_SUBREAPER = 36
_TIMED_OUT = 124
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class ProcessSeen:
    """
    One process that the program started.

    Attributes:
        command: Its command line as last seen; Ray writes there what a worker does.
        peak_rss_mib: MiB.
        samples: (monotonic seconds, CPU seconds so far).
    """

    command: str = ""
    peak_rss_mib: float = 0.0
    samples: list[tuple[float, float]] = field(default_factory=list)

    def cpu_between_s(self, start_monotonic_s: float, end_monotonic_s: float) -> float:
        """Return the CPU seconds between two times, to the nearest samples outside of them."""
        before = [cpu_s for at, cpu_s in self.samples if at <= start_monotonic_s]
        after = [cpu_s for at, cpu_s in self.samples if at >= end_monotonic_s]
        first = before[-1] if before else 0.0
        return (after[0] if after else self.samples[-1][1]) - first


@dataclass
class Cost:
    """
    What a program cost.

    Attributes:
        code: Exit code.
        started_monotonic_s: Just before it was started.
        ended_monotonic_s: When its first process had ended.
        cpu_s: User and system time of all its processes, the launcher's own left out: the kernel's sum of those that
            were waited for, or that of the samples where it is more, as Ray does not wait for its workers.
        processes: All that lived long enough to be seen; the first is the program's own.
        output: What it wrote to stdout.
    """

    code: int
    started_monotonic_s: float
    ended_monotonic_s: float
    cpu_s: float
    processes: list[ProcessSeen]
    output: str = ""

    @property
    def wall_s(self) -> float:
        """Seconds from start to exit."""
        return self.ended_monotonic_s - self.started_monotonic_s

    def find(self, word: str) -> list[ProcessSeen]:
        """Return the processes with `word` in their command lines."""
        return [process for process in self.processes if word in process.command]


def measure(command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 3600.0) -> Cost:
    """
    Run `command` to its end and return what it cost; stderr goes where this process's goes.

    Raises:
        subprocess.TimeoutExpired: It took longer than `timeout_s`; all its processes are killed.
        subprocess.CalledProcessError: It failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "cost.json"
        launcher = [sys.executable, __file__, str(result), str(timeout_s), *command]
        process = subprocess.run(launcher, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
        if process.returncode == _TIMED_OUT:
            raise subprocess.TimeoutExpired(list(command), timeout_s, process.stdout)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, list(command), process.stdout)
        fields = json.loads(result.read_text())
    fields["processes"] = [ProcessSeen(**seen) for seen in fields["processes"]]
    return Cost(**fields, output=process.stdout)


def _launch(result: Path, timeout_s: float, command: Sequence[str]) -> int:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    seen: dict[tuple[int, str], ProcessSeen] = {}
    is_over = threading.Event()
    started_monotonic_s = time.monotonic()
    process = subprocess.Popen(command)
    watcher = threading.Thread(target=_watch, args=(process.pid, seen, is_over), daemon=True)
    watcher.start()
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        code = _TIMED_OUT
        _kill_all()
    ended_monotonic_s = time.monotonic()
    is_over.set()
    watcher.join()
    _wait_for_daemons()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = {
        "code": code,
        "started_monotonic_s": started_monotonic_s,
        "ended_monotonic_s": ended_monotonic_s,
        "cpu_s": max(usage.ru_utime + usage.ru_stime, sum(process.samples[-1][1] for process in seen.values())),
        "processes": [vars(process) for process in seen.values()],
    }
    result.write_text(json.dumps(cost))
    return code


def _watch(root: int, seen: dict[tuple[int, str], ProcessSeen], is_over: threading.Event) -> None:
    while True:
        last = is_over.wait(SAMPLE_S)
        for pid in [root, *_descendants(os.getpid(), beside=root)]:
            with contextlib.suppress(OSError, IndexError):
                _sample(pid, seen)
        if last:
            return


def _sample(pid: int, seen: dict[tuple[int, str], ProcessSeen]) -> None:
    proc = Path(f"/proc/{pid}")
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    command = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    process = seen.setdefault((pid, fields[19]), ProcessSeen())
    process.command = command or process.command
    process.samples.append((time.monotonic(), cpu_s))
    for line in (proc / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            process.peak_rss_mib = int(line.split()[1]) / 1024


def _descendants(root: int, *, beside: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(path.name))
    found, todo = [], [root]
    while todo:
        for child in children.get(todo.pop(), ()):
            todo.append(child)
            if child != beside:
                found.append(child)
    return found


def _wait_for_daemons() -> None:
    give_up_s = time.monotonic() + END_GRACE_S
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            continue
        if time.monotonic() > give_up_s:
            _kill_all()
        time.sleep(0.05)


def _kill_all() -> None:
    for child in _descendants(os.getpid(), beside=0):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(_launch(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
