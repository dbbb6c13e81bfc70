"""One slow server among several does not hold the job up: what waits there goes to others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import AsyncHTTPClient, JobResult, LLMStage, run_job
from nemo_llm_stage.testing import SimulatedServer, expected_answer

NUM_ROWS = 240
SLOW_S = 2.0


@pytest.fixture
def servers() -> Iterator[list[SimulatedServer]]:
    """The first takes 2 s for an answer, the others 20 ms."""
    with ExitStack() as stack:
        times_s = (SLOW_S, 0.02, 0.02)
        yield [stack.enter_context(SimulatedServer(max_num_seqs=8, service_time_s=time_s)) for time_s in times_s]


def write_input(folder: Path, kind: str) -> Path:
    rows = [{"id": i, "text": f"row {i}"} for i in range(NUM_ROWS)]
    path = folder / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(servers: list[SimulatedServer], folder: Path, kind: str = "parquet", **settings: Any) -> JobResult:
    client = AsyncHTTPClient([server.base_url for server in servers], max_concurrent_requests=8, base_delay=0.01)
    stage = LLMStage(client=client, model="sim", prompt="Say {{ text }}", output_column="x")
    options: dict[str, Any] = {"engine": "local", "actors": 3, "rows_per_partition": 40, "progress": False}
    return run_job(stage=stage, input=write_input(folder, kind), output=folder / "out", **options | settings)


def check(servers: list[SimulatedServer], folder: Path, num_second_sends: int = 0) -> None:
    """Every row once, in order, with its own answer, paid for once but for the second sends."""
    tables = [pq.read_table(path) for path in sorted((folder / "out").glob("part-*"))]
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["id"] for row in rows] == list(range(NUM_ROWS))
    for row in rows:
        assert row["x"] == expected_answer([{"role": "user", "content": f"Say row {row['id']}"}])
    assert sum(server.stats.num_requests for server in servers) == NUM_ROWS + num_second_sends


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("rows_per_partition", [40, 240])
def test_rows_that_wait_at_a_slow_server_go_to_others(
    servers: list[SimulatedServer], tmp_path: Path, kind: str, rows_per_partition: int
) -> None:
    """The slow one answers what it had in flight when the others ran dry, and hardly more."""
    result = run(servers, tmp_path, kind, rows_per_partition=rows_per_partition, hedge="off")
    check(servers, tmp_path)
    assert servers[0].stats.num_requests <= 16
    assert (result.counters.num_rows, result.counters.num_attempts) == (NUM_ROWS, NUM_ROWS)
    left = [path for name in ("journal", "tmp") for path in (tmp_path / ".out.nemo_llm_stage" / name).glob("*")]
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize("actors", [1, 3])
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rows_in_flight_at_a_slow_server_are_sent_a_second_time(
    servers: list[SimulatedServer], tmp_path: Path, kind: str, actors: int
) -> None:
    """At most 2 % of them, once nothing else is left; the first answer counts, and the other request is cancelled."""
    result = run(servers, tmp_path, kind, actors=actors)
    counters = result.counters
    assert counters.num_second_sends == 4
    check(servers, tmp_path, num_second_sends=4)
    assert (counters.num_rows, counters.num_failed) == (NUM_ROWS, 0)
    assert (counters.num_attempts, counters.num_wasted_attempts) == (NUM_ROWS + 4, 4)
    assert servers[0].stats.num_aborted == 4
    events = json.loads((tmp_path / ".out.nemo_llm_stage" / "status.json").read_text())["events"]
    assert any("sent a second time" in event["text"] and servers[0].base_url in event["text"] for event in events)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_of_a_row_with_several_columns_those_that_it_lacks_are_sent_a_second_time(tmp_path: Path, kind: str) -> None:
    """The servers' answers differ; a prompt that uses an answer has the one that stands in the row."""
    settings: dict[str, Any] = {"max_num_seqs": 8}
    with (
        SimulatedServer(service_time_s=SLOW_S, answer_tokens=40, **settings) as slow,
        SimulatedServer(service_time_s=0.02, answer_tokens=30, **settings) as quick,
        SimulatedServer(service_time_s=0.02, answer_tokens=20, **settings) as other,
    ):
        servers = [slow, quick, other]
        client = AsyncHTTPClient([server.base_url for server in servers], max_concurrent_requests=8, base_delay=0.01)
        prompts = {"a": "Say {{ text }}", "b": "Repeat {{ a }}", "c": "Sing {{ text }}"}
        stages = [
            LLMStage(client=client, model="sim", prompt=prompt, output_column=name) for name, prompt in prompts.items()
        ]
        path, output = write_input(tmp_path, kind), tmp_path / "out"
        options: dict[str, Any] = {"engine": "local", "actors": 3, "rows_per_partition": 40, "progress": False}
        result = run_job(stage=stages, input=path, output=output, keep_raw=True, **options)
        num_requests = sum(server.stats.num_requests for server in servers)
        num_extra = num_requests - 3 * NUM_ROWS
        num_aborted = slow.stats.num_aborted
        run_job(stage=stages, input=path, output=output, keep_raw=True, restart=True, **options)
        assert sum(server.stats.num_requests for server in servers) == num_requests  # a chain is kept as a whole
    counters = result.counters
    assert (counters.num_rows, counters.num_failed, counters.num_resumed) == (NUM_ROWS, 0, 0)
    rows = pa.concat_tables(pq.read_table(file) for file in sorted(output.glob("part-*"))).to_pylist()
    assert [row["id"] for row in rows] == list(range(NUM_ROWS))
    for row in rows:
        said = {"a": f"Say row {row['id']}", "b": f"Repeat {row['a']}", "c": f"Sing row {row['id']}"}
        for name, prompt in said.items():
            assert row[name].startswith(expected_answer([{"role": "user", "content": prompt}])), row
    assert 0 < counters.num_second_sends <= num_extra <= 0.02 * 3 * NUM_ROWS
    assert counters.num_second_sends <= counters.num_wasted_attempts <= num_extra
    assert num_aborted > 0
