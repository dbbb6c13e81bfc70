"""
What does a job lose, double or pay for twice when it is killed?

The fast form kills attempts in processes of this machine, without Ray: at each failpoint of read, journal, commit and
retire, and at random times; a fifth of the deaths also damage a journal, as a power loss may. After each death every
file that a reader could see is read. The real form (``--real``) runs ``nemo-llm-stage run`` on Ray: workers die at
failpoints and by ``kill -9`` at random times, and so does the driver. In the end each row is compared with what the
server answers to it, and the server counts the requests that had been sent before: what may be paid for twice is what
was in flight at the deaths. In the real form and in some of the fast one a second server is slow: what waits there
goes to others, and is sent a second time.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from _crash import Tally, check_output, crash_a_job, write_input
from _nursery import SECOND_SHARE, CrashJob, Nursery
from _report import ROOT, make_parser, show

from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.testing import SimulatedServerProcess

KINDS: dict[str, dict[str, Any]] = {
    "run": {"action": "run"},
    "run, 3 workers": {"action": "run", "actors": 3, "rows_per_partition": 30},
    "run, 3 workers, one server slow": {"action": "run", "actors": 3, "rows_per_partition": 30},
    "run, 3 workers, one server slow, two columns": {
        "action": "run",
        "actors": 3,
        "rows_per_partition": 30,
        "num_columns": 2,
    },
    "run, object store": {"action": "run", "is_bucket": True},
    "run, object store, 3 workers, one server slow": {
        "action": "run",
        "actors": 3,
        "rows_per_partition": 30,
        "is_bucket": True,
    },
    "run, JSONL": {"action": "run", "output_format": "jsonl"},
    "run, ordered by prefix": {"action": "run", "rows_per_partition": 30, "num_documents": 5},
    "run, ordered by prefix, 3 workers": {"action": "run", "actors": 3, "rows_per_partition": 30, "num_documents": 5},
    "run, ordered by prefix, one server slow": {"action": "run", "rows_per_partition": 60, "num_documents": 5},
    "retry-failed, ordered by prefix": {"action": "retry", "rows_per_partition": 60, "num_documents": 5},
    "retry-failed": {"action": "retry", "keep_raw": True},
    "retry-failed, JSONL": {"action": "retry", "output_format": "jsonl"},
    "--restart": {"action": "restart", "keep_raw": True},
}
SLOW_S = 1.5
COLUMNS = (
    *("job", "deaths", "rows", "lost", "doubled", "wrong", "torn"),
    *("second sends", "extra requests", "in flight", "÷ death", "s"),
)

REAL_ROWS = 600
REAL_LIMIT = 16
REAL_ACTORS = 2
REAL_SLOW_S = 5.0
REAL_TIMEOUT_S = 600.0
PROGRAM = f"""
from nemo_llm_stage.worker import second_sends
second_sends.MAX_SHARE = {SECOND_SHARE}
from nemo_llm_stage.cli import main
main(prog_name="nemo-llm-stage")
"""
CHANCES = {"journal.before_write": 0.003, "journal.after_write": 0.003} | dict.fromkeys(
    (
        "read.before",
        "piece.before",
        "piece.after",
        "write.before",
        "commit.before_publish",
        "commit.after_publish",
        "retire.before",
        "retire.between",
        "retire.after",
        "ledger.before_write",
        "ledger.after_write",
        "ledger.before_rewrite",
        "ledger.between_rewrite",
        "ledger.after_rewrite",
        "finish.before",
        "finish.after",
    ),
    0.02,
)
"""Of dying at a failpoint, at each pass; a job of 30 partitions dies a dozen times or so."""


def crash_fast(
    num_crashes: int, kinds: Collection[str], folder: Path, rng: random.Random
) -> dict[str, tuple[Tally, float]]:
    """Return what came of killing small jobs, an equal share of each kind, at least `num_crashes` times in all."""
    results: dict[str, tuple[Tally, float]] = {}
    with (
        SimulatedServerProcess(service_time_s=0.004) as server,
        SimulatedServerProcess(service_time_s=SLOW_S) as slow,
        Nursery() as nursery,
    ):
        for kind in kinds:
            settings = KINDS[kind]
            if "slow" in kind:
                settings = settings | {"slow_url": slow.base_url}
            tally, number, started_s = Tally(), 0, time.monotonic()
            while tally.num_crashes < -(-num_crashes // len(kinds)):
                place = folder / f"{settings['action']}-{number}"
                crash_a_job(nursery, server, place, rng, tally, **settings)
                shutil.rmtree(place)
                number += 1
            results[kind] = tally, time.monotonic() - started_s
    return results


class RealJob:
    """
    A job on Ray by the command line.

    Args:
        base_urls: Of the servers.
        folder: Of the job.
        chances: Of dying at failpoints.
    """

    def __init__(self, base_urls: Sequence[str], folder: Path, chances: dict[str, float]) -> None:
        self._log, endpoints = folder / "deaths.log", folder / "endpoints.txt"
        endpoints.write_text("\n".join(base_urls))
        self._command = [sys.executable, "-c", PROGRAM, "run", "--input", str(folder / "in.parquet")]
        self._command += ["--output", str(folder / "out"), "--base-url", f"file:{endpoints}", "--model", "sim"]
        self._command += ["--prompt", "Say {{ text }}", "--output-column", "x", "--rows-per-partition", "20"]
        self._command += ["--actors", str(REAL_ACTORS)]
        self._command += ["--max-concurrent-requests", str(REAL_LIMIT), "--show-rows", "0", "--no-progress"]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        text = ",".join(f"{name}={chance}" for name, chance in chances.items())
        self._env = {
            **os.environ,
            "PYTHONPATH": path,
            failpoints.VARIABLE: text,
            failpoints.LOG_VARIABLE: str(self._log),
        }

    def start(self) -> subprocess.Popen[bytes]:
        """Start or resume it."""
        return subprocess.Popen(self._command, env=self._env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def deaths(self) -> list[str]:
        """Return the failpoints at which a process has died so far."""
        return [line.split()[0] for line in self._log.read_text().splitlines()] if self._log.exists() else []

    def worker_pids(self) -> list[int]:
        """Return the processes of this job's worker actors, by their names and by the log they were told of."""
        mark = f"{failpoints.LOG_VARIABLE}={self._log}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                is_worker = b"PartitionActor" in (path / "cmdline").read_bytes()
                if is_worker and mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
        return found


def crash_real(num_crashes: int, folder: Path, rng: random.Random, max_s: float) -> dict[str, tuple[Tally, float]]:
    """Return what came of killing jobs on Ray, at least `num_crashes` times in all unless `max_s` is over before."""
    ways = ("failpoints", "worker", "driver")
    results = {f"Ray, {way}": (Tally(), 0.0) for way in ways}
    started_s, number = time.monotonic(), 0
    with (
        SimulatedServerProcess(service_time_s=0.1) as server,
        SimulatedServerProcess(service_time_s=REAL_SLOW_S) as slow,
    ):
        while sum(tally.num_crashes for tally, _ in results.values()) < num_crashes:
            if time.monotonic() - started_s > max_s:
                break
            way = ways[number % len(ways)]
            tally, seconds = results[f"Ray, {way}"]
            place, began_s = folder / f"real-{number}", time.monotonic()
            write_input(place, REAL_ROWS)
            server.reset()
            job = RealJob([server.base_url, slow.base_url], place, CHANCES if way == "failpoints" else {})
            _run_until_done(job, server, way, rng, tally)
            check_output(CrashJob(server.base_url, str(place)), REAL_ROWS, tally)
            stats = server.stats
            tally.num_extra += stats.num_duplicates
            tally.num_repaid += stats.num_repaid
            results[f"Ray, {way}"] = tally, seconds + time.monotonic() - began_s
            print(f"{way}: {tally}", file=sys.stderr)
            shutil.rmtree(place)
            number += 1
    return results


def _run_until_done(job: RealJob, server: SimulatedServerProcess, way: str, rng: random.Random, tally: Tally) -> None:
    """Kill workers or the driver within a second of each attempt's first requests, and run again until it is done."""
    num_kills = num_given_up = num_before = 0
    process = job.start()
    give_up_s = time.monotonic() + REAL_TIMEOUT_S
    next_kill_s = 0.0
    while True:
        now = time.monotonic()
        if process.poll() is not None:
            if process.returncode == 0:
                break
            assert process.stderr is not None
            said = process.stderr.read().decode()
            has_given_up = "times in a row" in said  # a worker that dies at once, again and again, ends the attempt
            if process.returncode != -signal.SIGKILL and not has_given_up:
                tally.problems.append(f"exit code {process.returncode}: {said[-2000:]}")
                break
            num_given_up += has_given_up
            process, next_kill_s, num_before = job.start(), 0.0, server.stats.num_requests
        elif now > give_up_s:
            process.kill()
            tally.problems.append("hung")
            break
        elif next_kill_s == 0.0 and server.stats.num_requests > num_before:
            next_kill_s = now + rng.uniform(0.0, 1.0)
        elif next_kill_s and now > next_kill_s:
            if way == "driver":
                process.kill()
                num_kills += 1
            elif way == "worker":
                for pid in job.worker_pids():
                    os.kill(pid, signal.SIGKILL)
                    num_kills += 1
            next_kill_s, num_before = 0.0, server.stats.num_requests
        time.sleep(0.02)
    places = job.deaths()
    tally.places.update(places or {way: num_kills})
    tally.num_crashes += num_kills + len(places)
    num_workers = REAL_ACTORS if way == "driver" else 1
    tally.num_in_flight += REAL_LIMIT * (num_workers * (num_kills + len(places)) + REAL_ACTORS * num_given_up)


def _row(kind: str, tally: Tally, seconds: float) -> list[object]:
    per_death = tally.num_extra / tally.num_crashes if tally.num_crashes else 0.0
    numbers = (tally.num_crashes, tally.num_rows, tally.num_lost, tally.num_doubled, tally.num_wrong, tally.num_torn)
    return [
        kind,
        *numbers,
        tally.num_second_sends,
        tally.num_extra,
        tally.num_in_flight,
        f"{per_death:.1f}",
        f"{seconds:.0f}",
    ]


def main() -> None:
    """Run and report; exit code 1 where anything was lost, doubled, wrong or paid for beyond what was in flight."""
    parser = make_parser(__doc__)
    parser.add_argument("--crashes", type=int, default=1000, help="of the fast form (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=tuple(KINDS), help="of the fast form (all)")
    parser.add_argument("--real", type=int, default=0, metavar="N", help="also at least N of the real form, on Ray")
    parser.add_argument("--real-max-s", type=float, default=1800.0, help="stop the real form after (%(default)s s)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the places (%(default)s)")
    options = parser.parse_args()
    folder = options.folder / f"crash-{os.getpid()}"
    rng = random.Random(options.seed)
    results = crash_fast(options.crashes, options.kinds, folder, rng) if options.crashes else {}
    if options.real:
        results |= crash_real(options.real, folder, rng, options.real_max_s)
    shutil.rmtree(folder, ignore_errors=True)
    problems = [problem for tally, _ in results.values() for problem in tally.problems]
    show(
        "crash",
        options=options,
        columns=COLUMNS,
        rows=[_row(kind, tally, seconds) for kind, (tally, seconds) in results.items()],
        results={kind: vars(tally) | {"seconds": seconds} for kind, (tally, seconds) in results.items()},
        notes=problems[:20],
    )
    sys.exit(0 if all(tally.is_clean for tally, _ in results.values()) else 1)


if __name__ == "__main__":
    main()
