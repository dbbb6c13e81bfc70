"""What the tests of jobs share: a server, forty rows in two files, and a short way to run a job over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import AsyncHTTPClient, JobResult, LLMStage, retry_failed, run_job
from nemo_llm_stage.testing import SimulatedServer, expected_answer


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty rows: 25 in a Parquet file, 15 in a JSONL file."""
    rows = [{"id": i, "text": f"row {i}", "tags": [str(i)]} for i in range(40)]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:25]), tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[25:]))
    return tmp_path


class JobRunner:
    """Runs jobs over ``in`` into ``out`` of `folder`, in this process."""

    def __init__(self, server: SimulatedServer, folder: Path) -> None:
        self.server = server
        self.folder = folder

    def stage(self, **settings: Any) -> LLMStage:
        client = AsyncHTTPClient(self.server.base_url, max_concurrent_requests=8, base_delay=0.01, max_retries=2)
        defaults = {"client": client, "model": "sim", "prompt": "Say {{ text }}", "output_column": "x"}
        return LLMStage(**defaults | settings)

    def run(self, stage: LLMStage | None = None, **settings: Any) -> JobResult:
        options: dict[str, Any] = {"input": self.folder / "in", "output": self.folder / "out", "rows_per_partition": 10}
        return run_job(stage=stage or self.stage(), **options | {"engine": "local", "progress": False} | settings)

    def retry(self, stage: LLMStage | None = None, **settings: Any) -> JobResult:
        output = self.folder / "out"
        return retry_failed(stage=stage or self.stage(), output=output, engine="local", progress=False, **settings)

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for path in sorted((self.folder / "out").glob("part-*")):
            is_jsonl = path.suffix == ".jsonl"
            rows += map(json.loads, path.open()) if is_jsonl else pq.read_table(path).to_pylist()
        return rows


@pytest.fixture
def job(server: SimulatedServer, folder: Path) -> JobRunner:
    return JobRunner(server, folder)


@pytest.fixture
def answers() -> Callable[..., list[str]]:
    """What the server answers to the rows with these numbers."""

    def answers(numbers: range, word: str = "Say") -> list[str]:
        return [expected_answer([{"role": "user", "content": f"{word} row {number}"}]) for number in numbers]

    return answers
