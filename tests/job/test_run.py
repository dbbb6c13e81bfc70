"""Files in, files out: every row once, in order, and going on where a run stopped."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import (
    AsyncHTTPClient,
    ConfigError,
    FatalError,
    InputError,
    JobResult,
    LLMStage,
    OutputConflictError,
    RunError,
    TransientError,
    run_job,
)
from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer


def make_stage(server: SimulatedServer, **settings: Any) -> LLMStage:
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=8, base_delay=0.01, max_retries=2)
    return LLMStage(**{"client": client, "model": "sim", "prompt": "Say {{ text }}", "output_column": "x"} | settings)


def run(server: SimulatedServer, folder: Path, **settings: Any) -> JobResult:
    stage = settings.pop("stage", None) or make_stage(server)
    options = {"input": folder / "in", "output": folder / "out", "rows_per_partition": 10, "progress": False}
    return run_job(stage=stage, engine="local", **options | settings)  # type: ignore[arg-type]


def answers(num: int) -> list[str]:
    return [expected_answer([{"role": "user", "content": f"Say row {i}"}]) for i in range(num)]


def read(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "out")


def test_every_row_comes_out_once_and_in_order(server: SimulatedServer, folder: Path) -> None:
    """Input columns first; one file a partition; nothing sent twice."""
    result = run(server, folder)
    out = read(folder)
    assert out["id"].tolist() == list(range(40))
    assert out["x"].tolist() == answers(40)
    assert list(out.columns) == ["id", "text", "tags", "x", "x_error", "x_skipped", "x_meta"]
    assert (result.counters.num_rows, result.counters.num_answered, result.num_partitions) == (40, 40, 5)
    assert server.stats.num_requests == 40
    assert (folder / "out" / ".nemo_llm_stage" / "_SUCCESS").exists()
    assert not list((folder / ".out.nemo_llm_stage" / "journal").iterdir())


def test_all_files_have_the_declared_schema(server: SimulatedServer, folder: Path) -> None:
    """Also a file in which all answers are null."""
    server.faults = [Fault(400, contains=f"row {i}") for i in range(30, 40)]
    run(server, folder, max_failed_rows=None)
    schemas = [pq.read_schema(path).remove_metadata() for path in sorted((folder / "out").glob("part-*"))]
    assert all(schema.equals(schemas[0]) for schema in schemas)
    assert schemas[0].field("x").type == schemas[0].field("x_error").type == pa.string()


def test_jsonl_out_has_the_same_rows(server: SimulatedServer, folder: Path) -> None:
    """By option."""
    run(server, folder, output_format="jsonl")
    lines = [line for path in sorted((folder / "out").glob("part-*.jsonl")) for line in path.open()]
    rows = [json.loads(line) for line in lines]
    assert [row["x"] for row in rows] == answers(40)
    assert rows[0]["x_meta"]["finish_reason"] == "stop"


def test_running_again_asks_nothing(server: SimulatedServer, folder: Path) -> None:
    """And needs no server."""
    stage = make_stage(server)
    run(server, folder, stage=stage)
    with server.outage():
        result = run(server, folder, stage=stage)
    assert (result.counters.num_rows, result.num_rows_before) == (40, 40)
    assert server.stats.num_requests == 40


def test_a_lost_file_is_made_anew(server: SimulatedServer, folder: Path) -> None:
    """Only its rows are asked again."""
    run(server, folder)
    (folder / "out" / "part-00000001.parquet").unlink()
    run(server, folder)
    assert read(folder)["x"].tolist() == answers(40)
    assert server.stats.num_requests == 50


def test_what_was_answered_before_a_stop_is_not_paid_for_again(server: SimulatedServer, folder: Path) -> None:
    """Every answer is journaled as it comes; here the key is taken back in mid-run."""
    server.faults = [Fault(401, contains=f"row {i}") for i in range(15, 40)]
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=1)
    with pytest.raises(FatalError):
        run(server, folder, stage=make_stage(server, client=client))
    assert server.stats.by_status[200] > 0
    server.faults = []
    result = run(server, folder, stage=make_stage(server, client=client))
    assert read(folder)["x"].tolist() == answers(40)
    assert result.num_rows_before + result.counters.num_resumed > 0
    assert server.stats.num_repaid <= 2  # in flight as the run stopped: one of the broken partition, one of another


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "Tell {{ text }}"}, r"prompt.*Say \{\{ text \}\}.* there, .*Tell \{\{ text \}\}.* now"),
        ({"generation_config": {"max_tokens": 7}}, "generation_config.max_tokens: 2048 there, 7 now"),
        ({"has_meta": False}, "has_meta: True there, False now"),
    ],
)
def test_another_stage_is_refused(server: SimulatedServer, folder: Path, change: dict[str, Any], words: str) -> None:
    """The difference is spelled out, and the output stays."""
    run(server, folder)
    with pytest.raises(OutputConflictError, match=words):
        run(server, folder, stage=make_stage(server, **change))
    assert read(folder)["x"].tolist() == answers(40)


def test_a_changed_input_is_named_and_refused(server: SimulatedServer, folder: Path) -> None:
    """Each file that is gone, new or changed."""
    run(server, folder)
    (folder / "in" / "b.jsonl").write_text('{"id": 1, "text": "other", "tags": []}\n')
    (folder / "in" / "c.jsonl").write_text('{"id": 1, "text": "new", "tags": []}\n')
    with pytest.raises(InputError, match=r"c\.jsonl is new\n.*b\.jsonl has changed"):
        run(server, folder)


def test_a_folder_of_others_is_refused(server: SimulatedServer, folder: Path) -> None:
    """Before anything is asked."""
    (folder / "out").mkdir()
    (folder / "out" / "mine.parquet").write_bytes(b"x")
    with pytest.raises(OutputConflictError, match="no job of this package wrote"):
        run(server, folder)
    assert server.stats.num_requests == 0


def test_an_unreachable_server_is_told_before_anything_is_written(server: SimulatedServer, folder: Path) -> None:
    """With its address."""
    with server.outage(), pytest.raises(TransientError, match=server.base_url):
        run(server, folder)
    assert not (folder / ".out.nemo_llm_stage" / "job.json").exists()
    run(server, folder)


def test_an_unknown_model_is_told_before_anything_is_written(server: SimulatedServer, folder: Path) -> None:
    """With the models that there are."""
    with pytest.raises(FatalError, match="sim"):
        run(server, folder, stage=make_stage(server, model="simm"))
    assert not (folder / ".out.nemo_llm_stage" / "job.json").exists()


def test_a_missing_column_is_told_before_anything_is_asked(server: SimulatedServer, folder: Path) -> None:
    """With the nearest one."""
    with pytest.raises(InputError, match="'text'"):
        run(server, folder, stage=make_stage(server, prompt="{{ txet }}"))
    assert server.stats.num_requests == 0


def test_failed_rows_are_values_and_counted_by_kind(server: SimulatedServer, folder: Path) -> None:
    """With an example each; a row that is not to be asked again for hours fails."""
    server.faults = [Fault(400, contains="row 1"), Fault(500, contains="row 20")]
    stage = make_stage(server, give_up_after_s=0)
    counters = run(server, folder, stage=stage, max_failed_rows=None).counters
    assert counters.errors == {"bad_request": 11, "server_error": 1}
    assert counters.num_failed == 12
    assert counters.examples["server_error"].startswith("server_error: ")
    assert read(folder)["x_error"].notna().sum() == 12


def test_nulls_and_unused_columns_pass_through(server: SimulatedServer, tmp_path: Path) -> None:
    """Nested values, times and all."""
    table = pa.table(
        {
            "text": ["a", None, "c"],
            "when": pa.array([1, None, 3], pa.timestamp("us", "UTC")),
            "nested": [[{"a": 1, "b": None}], None, []],
            "code": pa.array(["x", "y", None]).dictionary_encode(),
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    result = run(server, tmp_path)
    out = pq.read_table(tmp_path / "out" / "part-00000000.parquet")
    assert out.select(table.schema.names).to_pylist() == table.to_pylist()
    assert out.column("x_skipped").to_pylist() == [None, "column 'text' is null", None]
    assert (result.counters.num_skipped, result.counters.num_failed) == (1, 0)


def test_an_empty_input_gives_an_empty_file_with_all_columns(server: SimulatedServer, tmp_path: Path) -> None:
    """A reader finds a dataset."""
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in" / "a.parquet")
    assert run(server, tmp_path).counters.num_rows == 0
    assert list(read(tmp_path).columns) == ["text", "x", "x_error", "x_skipped", "x_meta"]


def test_large_partitions_are_streamed_in_order(server: SimulatedServer, tmp_path: Path) -> None:
    """More rows than are held at once."""
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(5000)]}), tmp_path / "in" / "a.parquet")
    run(server, tmp_path, rows_per_partition=5000)
    assert read(tmp_path)["x"].tolist() == answers(5000)


def test_input_and_output_may_be_any_filesystem(server: SimulatedServer, tmp_path: Path) -> None:
    """By fsspec."""
    import fsspec

    fs = fsspec.filesystem("memory")
    base = f"/{tmp_path.name}"
    fs.pipe_file(f"{base}/in/a.jsonl", b"".join(b'{"text": "row %d"}\n' % i for i in range(30)))
    run(server, tmp_path, input=f"memory://{base}/in/*.jsonl", output=f"memory://{base}/out")
    names = sorted(name for name in fs.ls(f"{base}/out", detail=False) if "part-" in name)
    tables = [pq.read_table(fs.open(name)) for name in names]
    assert [value for table in tables for value in table.column("x").to_pylist()] == answers(30)


def test_two_jobs_cannot_claim_one_folder(server: SimulatedServer, folder: Path) -> None:
    """The second one is told so, whatever the timing."""
    results: list[JobResult | Exception] = []

    def attempt(prompt: str) -> None:
        try:
            results.append(run(server, folder, stage=make_stage(server, prompt=prompt)))
        except OutputConflictError as error:
            results.append(error)

    threads = [threading.Thread(target=attempt, args=(f"{word} {{{{ text }}}}",)) for word in ("Say", "Tell")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(result).__name__ for result in results) == ["JobResult", "OutputConflictError"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine": "spark"}, "engine is 'spark'"),
        ({"output_format": "csv"}, "output_format is 'csv'"),
        ({"rows_per_partition": 0}, "rows_per_partition is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    server: SimulatedServer, folder: Path, settings: dict[str, Any], words: str
) -> None:
    """Before anything is read."""
    options = {"engine": "local", "progress": False} | settings
    with pytest.raises(ConfigError, match=words):
        run_job(stage=make_stage(server), input=folder / "in", output=folder / "out", **options)  # type: ignore[arg-type]


def test_a_damaged_output_fails_the_last_check(server: SimulatedServer, folder: Path) -> None:
    """The file is named, and _SUCCESS is not written anew."""
    run(server, folder)
    (folder / "out" / "part-00000002.parquet").write_bytes(b"PAR1 broken PAR1")
    with pytest.raises(RunError, match=r"part-00000002\.parquet"):
        run(server, folder)
