"""
Make the outputs and journals of an older version that newer ones must go on with: ``old_outputs/*.tar.gz``.

The archives were made by 0.1.0 before its rooms moved (``cluster/run.py`` and ``dataset/output.py`` were still there).
To make such archives of another version, run this file with that version on ``PYTHONPATH`` and name a folder::

    PYTHONPATH=/path/to/the/version python tests/data/make_old_outputs.py FOLDER

An archive holds ``in/``, ``out/`` and ``expected.json``: what that version itself did to end the job. Paths and the
server's address in it are `FOLDER` and `SERVER`; `unpack` puts the real ones in. Uses only what every version has.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

from nemo_llm_stage import AsyncHTTPClient, LLMStage, MultiColumnStage, retry_failed, run_job
from nemo_llm_stage.cli import main
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.testing import Fault, SimulatedServer

ARCHIVES = Path(__file__).parent / "old_outputs"
FOLDER, SERVER = "@FOLDER@", "http://server.invalid/v1"
INPUT_TIME_S = 1_700_000_000
"""Modification time of every input file: part of a file's identity."""

NUM_ROWS = 40


def client_of(base_url: str, limit: int = 8) -> AsyncHTTPClient:
    return AsyncHTTPClient(base_url, max_concurrent_requests=limit, base_delay=0.01, max_retries=0)


def one_column(base_url: str, limit: int = 8, **settings: Any) -> LLMStage:
    options = {"prompt": "Say {{ text }}", "output_column": "x", "model": "sim"} | settings
    return LLMStage(client=client_of(base_url, limit), **options)


def two_columns(base_url: str, limit: int = 8) -> MultiColumnStage:
    """The second uses the first; rows whose id is a multiple of ten are dropped, null texts are skipped."""
    first = one_column(base_url, limit, prompt="Say {{ maybe }}", output_column="x")
    second = one_column(base_url, limit, prompt="Rate {{ x }}", output_column="y")
    return MultiColumnStage([first, second], keep_if="id % 10 != 0")


@dataclass(frozen=True)
class Case:
    """
    A job, and how far it came.

    Attributes:
        make_stage: Takes the server's address and the number of requests in flight.
        options: Of `run_job`.
        refused: Rows with one of these in their prompts fail, until they are retried.
        dies_at: Failpoint at which the job was killed, and at which pass; None for a job that ended.
        retries: Whether it is not the job that was killed but the retry of its failed rows.
        is_torn: Whether a journal has half a line at its end.
        has_broken_line: Whether a line of the input is no JSON.
        is_command: Whether it was run from the command line, so that its settings are kept with it.
    """

    make_stage: Callable[..., Any] = one_column
    options: dict[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    dies_at: tuple[str, int] | None = None
    retries: bool = False
    is_torn: bool = False
    has_broken_line: bool = False
    is_command: bool = False

    @property
    def faults(self) -> list[Fault]:
        return [Fault(400, contains=word) for word in self.refused]


CASES = {
    "command": Case(refused=("row 7 ", "row 31 "), is_command=True),
    "parquet": Case(refused=("row 7 ", "row 31 ")),
    "jsonl": Case(
        options={"output_format": "jsonl", "on_bad_input": "skip"}, refused=("row 7 ", "row 31 "), has_broken_line=True
    ),
    "killed": Case(refused=("row 3 ", "row 22 "), dies_at=("journal.after_write", 27), is_torn=True),
    "killed-jsonl": Case(
        options={"output_format": "jsonl"}, refused=("row 3 ",), dies_at=("commit.after_publish", 2), is_torn=True
    ),
    "killed-columns": Case(make_stage=two_columns, refused=("Say maybe 4 ",), dies_at=("journal.after_write", 40)),
    "keep-raw": Case(options={"keep_raw": True}, refused=("row 12 ",)),
    "columns": Case(make_stage=two_columns, refused=("Say maybe 4 ", "Rate [sim] Say maybe 13 ")),
    "pieces": Case(options={"actors": 3, "rows_per_partition": 25}, dies_at=("piece.after", 4)),
    "retry": Case(
        refused=("row 7 ", "row 12 ", "row 13 ", "row 31 "), dies_at=("commit.before_replace", 2), retries=True
    ),
}


def write_input(folder: Path, *, has_broken_line: bool = False) -> None:
    """Write 25 rows as Parquet and 15 as JSONL; every seventh has a null in ``maybe``."""
    rows = [
        {"id": i, "text": f"row {i} .", "maybe": None if i % 7 == 6 else f"maybe {i} .", "tags": [str(i)]}
        for i in range(NUM_ROWS)
    ]
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[:25]), folder / "a.parquet")
    lines = [json.dumps(row) for row in rows[25:]]
    if has_broken_line:
        lines.insert(5, '{"id": 29, "text"')
    (folder / "b.jsonl").write_text("".join(line + "\n" for line in lines))
    for path in folder.iterdir():
        os.utime(path, (INPUT_TIME_S, INPUT_TIME_S))


def run(case: Case, folder: Path, base_url: str, limit: int = 8) -> None:
    """Run the job, or go on with it; raises where it cannot be ended."""
    if case.is_command:
        words = ["--input", folder / "in", "--output", folder / "out", "--base-url", base_url, "--model", "sim"]
        words += [
            "--prompt",
            "Say {{ text }}",
            "--output-column",
            "x",
            "--rows-per-partition",
            "10",
            "--max-retries",
            "0",
        ]
        _command("run", *words, "--engine", "local", "--max-failed-rows", "40")
        return
    defaults = {"rows_per_partition": 10, "max_failed_rows": None, "engine": "local", "progress": False}
    places = {"input": folder / "in", "output": folder / "out"}
    run_job(stage=case.make_stage(base_url, limit), **places, **defaults | case.options)


def retry(case: Case, folder: Path, base_url: str, limit: int = 8) -> None:
    """Retry the failed rows of the job."""
    if case.is_command:
        _command("retry-failed", folder / "out")
        return
    stage = case.make_stage(base_url, limit)
    retry_failed(stage=stage, output=folder / "out", engine="local", progress=False)


def verify(folder: Path) -> str:
    """Return what `nemo-llm-stage verify --rows` says of the output, and its exit code."""
    result = CliRunner().invoke(main, ["verify", str(folder / "out"), "--rows"])
    return f"{result.exit_code}\n{result.output}"


def _command(*words: Any) -> None:
    result = CliRunner().invoke(main, list(map(str, words)))
    if result.exception is not None and not (isinstance(result.exception, SystemExit) and result.exit_code in (0, 3)):
        raise RuntimeError(result.output) from result.exception


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the output's rows in order, without what differs from run to run."""
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "out").glob("part-*")):
        rows += map(json.loads, path.open()) if path.suffix == ".jsonl" else pq.read_table(path).to_pylist()
    return [{name: value for name, value in row.items() if not name.endswith("_meta")} for row in rows]


def unpack(name: str, folder: Path, base_url: str) -> None:
    """Put the job `name` into `folder`, as if it had run there against the server at `base_url`."""
    with tarfile.open(ARCHIVES / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    for path in (folder / "in").iterdir():
        os.utime(path, (INPUT_TIME_S, INPUT_TIME_S))
    _replace_in(folder, {FOLDER: str(folder), SERVER: base_url})


def _replace_in(folder: Path, words: dict[str, str]) -> None:
    state = folder / "out" / "_nemo_llm_stage"
    for path in (state / "job.json", *state.glob("bad_input/*")):
        text = path.read_text()
        for old, new in words.items():
            text = text.replace(old, new)
        path.write_text(text)


def make(name: str, target: Path) -> None:
    """Run the job `name` as far as it shall come, and pack it with what this version makes of it afterwards."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as temporary, SimulatedServer() as server:
        folder = Path(temporary) / "job"
        write_input(folder / "in", has_broken_line=case.has_broken_line)
        server.faults = case.faults
        if case.dies_at is None or case.retries:
            run(case, folder, server.base_url)
        if case.retries:
            server.faults = []
        if case.dies_at is not None:
            code = subprocess.run([sys.executable, __file__, "--die", name, str(folder), server.base_url], check=False)
            assert code.returncode == -signal.SIGKILL, code
        if case.is_torn:
            journal = max((folder / "out").glob("_nemo_llm_stage/journal/*/*.jsonl"), default=None)
            if journal is not None:
                journal.write_bytes(journal.read_bytes()[:-9])
        before = Path(temporary) / "before"
        shutil.copytree(folder, before)
        expected = _finish(case, folder, server)
        _replace_in(before, {str(folder): FOLDER, server.base_url: SERVER})
        (before / "expected.json").write_text(json.dumps(expected))
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(target / f"{name}.tar.gz", "w:gz") as archive:
            for part in ("in", "out", "expected.json"):
                archive.add(before / part, part)


def _finish(case: Case, folder: Path, server: SimulatedServer) -> dict[str, Any]:
    """Return what this version sends to end the job and to retry its failed rows, and the rows after each."""
    server.reset()
    (retry if case.retries else run)(case, folder, server.base_url)
    num_requests, rows = server.stats.num_requests, read_rows(folder)
    server.faults = []
    server.reset()
    retry(case, folder, server.base_url)
    num_retried = server.stats.num_requests
    return {"num_requests": num_requests, "rows": rows, "num_retried": num_retried, "rows_retried": read_rows(folder)}


def die(name: str, folder: Path, base_url: str) -> None:
    """Run the job `name` in this process until it is killed."""
    case = CASES[name]
    seen: Counter[str] = Counter()
    assert case.dies_at is not None
    place, num = case.dies_at

    def hook(reached: str) -> None:
        seen[reached] += 1
        if reached == place and seen[place] == num:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.listen(hook)
    (retry if case.retries else run)(case, folder, base_url, limit=1)


if __name__ == "__main__":
    if sys.argv[1] == "--die":
        die(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
    else:
        for case_name in CASES:
            make(case_name, Path(sys.argv[1]))
