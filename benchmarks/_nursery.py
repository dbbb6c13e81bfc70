"""
Attempts at jobs, each in a child process that can be killed at any place.

The nursery, a process that has everything imported and runs nothing itself, forks a child for each attempt: that costs
a tenth of a second, and a death is a real ``kill -9``. Knows the in-process engine only.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from _folder_store import PROTOCOL, register

from nemo_llm_stage import AsyncHTTPClient, LLMStage, MultiColumnStage, OutputConflictError, retry_failed, run_job
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.stage.stage import Stage
from nemo_llm_stage.worker import second_sends


@dataclass(frozen=True)
class CrashJob:
    """
    A job to be killed.

    Attributes:
        base_url: Of the server.
        folder: Has ``in.parquet``; gets ``out``.
        limit: Requests in flight.
        rows_per_partition: About.
        prompt: Word before the row's text.
        output_format: parquet or jsonl.
        keep_raw: As for `run_job`.
        actors: Workers, each with so many requests in flight.
        slow_url: Of a second server, which is slow; None for one server only.
        num_columns: 1, or 2: then the answers of the first are in the prompts of the second.
        is_bucket: Whether the output is in an object store, as `_folder_store` has it.
        num_documents: That the rows' texts begin with, in turn; 0 for none. `order: auto` sends those of one together.
        takeover: Whether to take the place of a run that was stopped there.
        action: run, restart (thrown away first where another prompt wrote it) or retry (ask the failed rows again).
    """

    base_url: str
    folder: str
    limit: int = 8
    rows_per_partition: int = 10
    prompt: str = "Say"
    output_format: str = "parquet"
    keep_raw: bool = False
    actors: int = 1
    action: str = "run"
    takeover: bool = False
    slow_url: str | None = None
    num_documents: int = 0
    num_columns: int = 1
    is_bucket: bool = False

    @property
    def output(self) -> str:
        """What the job is told to write to."""
        path = f"{self.folder}/out"
        return f"{PROTOCOL}://{path}" if self.is_bucket else path


FLUSH_S = 0.02
"""Between two objects of answers: a job takes a few tenths of a second."""

SECOND_SHARE = 0.5
"""Of the tokens, for second sends: so that deaths meet many."""

MAX_ATTEMPT_S = 300.0
"""An attempt that takes longer hangs, or was stopped and never woken; the nursery is killed then."""


class Nursery:
    """Forks attempts; enter it as a context."""

    def __enter__(self) -> Self:
        """Start it: about 2 s, once."""
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        return self

    def __exit__(self, *exc: object) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def attempt(self, job: CrashJob, place: str = "", nth: float = 1, *, is_stopped: bool = False) -> dict[str, Any]:
        """
        Run `job` once, to its end or its death, and return ``{"code", "in_flight", "pid"}``.

        Args:
            job: What to run.
            place: A failpoint to die at; "time" to die after `nth` seconds; "" to live.
            nth: The pass of the failpoint to die at, from 1.
            is_stopped: Only stop there, by SIGSTOP, until `wake`; the code is None.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([asdict(job), place, nth, is_stopped]) + "\n")
        self._process.stdin.flush()
        return self._next()

    def wake(self, pid: int) -> dict[str, Any]:
        """Let an attempt that was stopped go on, and return how it ended."""
        os.kill(pid, signal.SIGCONT)
        return self._next()

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], MAX_ATTEMPT_S)[0]:
            self._process.kill()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the nursery has died")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _stage_of(job: CrashJob) -> Stage:
    urls = [url for url in (job.base_url, job.slow_url) if url is not None]
    client = AsyncHTTPClient(urls, max_concurrent_requests=job.limit, max_retries=0)
    first = LLMStage(client=client, model="sim", prompt=f"{job.prompt} {{{{ text }}}}", output_column="x")
    if job.num_columns == 1:
        return first
    return MultiColumnStage([first, LLMStage(client=client, model="sim", prompt="Then {{ x }}", output_column="y")])


def _run(job: CrashJob, stage: Stage) -> None:
    output = job.output
    if job.action == "retry":
        retry_failed(stage=stage, output=output, engine="local", progress=False)
        return
    settings: dict[str, Any] = {
        "stage": stage,
        "input": Path(job.folder) / "in.parquet",
        "output": output,
        "engine": "local",
        "actors": job.actors,
        "output_format": job.output_format,
        "rows_per_partition": job.rows_per_partition,
        "max_failed_rows": None,
        "keep_raw": job.keep_raw,
        "progress": False,
        "takeover": job.takeover,
        "flush_interval": FLUSH_S,
    }
    try:
        run_job(**settings)
    except OutputConflictError:
        if job.action != "restart":
            raise
        run_job(**settings, restart=True)


def _attempt(job: CrashJob, place: str, nth: float, *, is_stopped: bool) -> None:
    second_sends.MAX_SHARE = SECOND_SHARE
    stage = _stage_of(job)
    passes = 0
    passing = threading.Lock()  # while one thread stops the process there, no other slips by

    def die() -> None:
        # One more: an answer that has come and is not yet journaled has given its permit back.
        in_flight = stage.num_in_flight + 1 if job.actors == 1 else (job.limit + 1) * job.actors
        if job.is_bucket:  # and the answers that are not flushed yet: those of two intervals, and of a slow moment
            in_flight += 4 * job.limit * job.actors
        os.write(1, json.dumps({"in_flight": in_flight}).encode() + b"\n")
        os.kill(os.getpid(), signal.SIGSTOP if is_stopped else signal.SIGKILL)

    def hook(name: str) -> None:
        nonlocal passes
        if name == place:
            with passing:
                passes += 1
                if passes == nth:
                    die()

    if place == "time":
        threading.Thread(target=lambda: (time.sleep(nth), die()), daemon=True).start()
    elif place:
        failpoints.listen(hook)
    _run(job, stage)


def nurse() -> None:
    """Fork an attempt for each line on stdin, and tell how it ended on stdout."""
    register()
    for line in sys.stdin:
        fields, place, nth, is_stopped = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.dup2(writer, 1)
            try:
                _attempt(CrashJob(**fields), place, nth, is_stopped=is_stopped)
            except BaseException:  # noqa: BLE001 - the child must end here, whatever it was
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(writer)
        _, status = os.waitpid(pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            print(json.dumps({"code": None, "pid": pid}), flush=True)
            _, status = os.waitpid(pid, 0)
        with os.fdopen(reader) as said:
            last = said.read().strip()
        in_flight = json.loads(last)["in_flight"] if last else 0
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "in_flight": in_flight, "pid": pid}), flush=True)


if __name__ == "__main__":
    nurse()
