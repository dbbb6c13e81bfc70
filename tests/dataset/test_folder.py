"""A reader of the output folder sees whole files only, and the first writer wins."""

from __future__ import annotations

import threading
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.inspect import inspect
from nemo_llm_stage.errors import OutputConflictError, RunError

SCHEMA = pa.schema([("a", pa.int64()), ("a_error", pa.string())])


def table_of(values: list[int]) -> pa.Table:
    return pa.table([values, [None] * len(values)], schema=SCHEMA)


def commit(output: OutputFolder, name: str, values: list[int], **counts: int) -> bool:
    with output.writer(SCHEMA) as writer:
        writer.write(table_of(values))
        return writer.commit(name, Counters(num_rows=len(values), **counts))


@pytest.fixture(params=["parquet", "jsonl"])
def output(tmp_path: Path, request: pytest.FixtureRequest) -> OutputFolder:
    folder = OutputFolder(str(tmp_path / "out"), request.param)
    folder.check_writable()
    return folder


def test_a_committed_file_tells_its_counts_without_its_rows(output: OutputFolder) -> None:
    """And how many rows it holds."""
    name = f"part-00000000.{output.format}"
    assert commit(output, name, [1, 2], num_failed=1)
    assert output.committed() == {name}
    assert output.read_counters(name) == Counters(num_rows=2, num_failed=1, num_written=2)
    assert inspect(output, name, {"a": ["a"]}).num_rows == 2


def test_a_second_writer_changes_nothing(output: OutputFolder) -> None:
    """A worker that wakes up late neither replaces nor duplicates."""
    name = f"part-00000000.{output.format}"
    assert commit(output, name, [1])
    before = output.folder.read(name)
    assert not commit(output, name, [2, 3])
    assert output.folder.read(name) == before
    assert output.read_counters(name).num_rows == 1


def test_of_many_writers_at_once_one_wins(output: OutputFolder) -> None:
    """The others are told so."""
    name = f"part-00000000.{output.format}"
    wins: list[bool] = []
    threads = [threading.Thread(target=lambda i=i: wins.append(commit(output, name, [i]))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [False] * 7 + [True]


def test_nothing_is_visible_before_the_commit(output: OutputFolder) -> None:
    """Nor is anything left behind by a writer that gave up."""
    with output.writer(SCHEMA) as writer:
        writer.write(table_of([1]))
        assert output.committed() == set()
    assert output.state.names("tmp") == set()


def test_pandas_reads_the_folder_as_it_is(tmp_path: Path) -> None:
    """What a job keeps beside the data is ignored."""
    output = OutputFolder(str(tmp_path))
    output.check_writable()
    commit(output, "part-00000001.parquet", [2])
    commit(output, "part-00000000.parquet", [1])
    output.write_success("job")
    assert pd.read_parquet(tmp_path)["a"].tolist() == [1, 2]


def test_a_folder_with_files_of_others_is_refused(tmp_path: Path) -> None:
    """Nothing is written into it."""
    (tmp_path / "precious.parquet").write_bytes(b"x")
    with pytest.raises(OutputConflictError, match=r"already holds 'precious\.parquet'"):
        OutputFolder(str(tmp_path)).check_writable()
    assert [path.name for path in tmp_path.iterdir()] == ["precious.parquet"]


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """With the reason."""
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputConflictError, match="is a file"):
        OutputFolder(str(tmp_path / "out")).check_writable()


def test_lost_counts_of_a_jsonl_file_are_counted_anew(tmp_path: Path) -> None:
    """A writer may die between the file and its counts."""
    output = OutputFolder(str(tmp_path), "jsonl")
    output.check_writable()
    output.write_job({"stage": {"output_column": "x"}})
    rows = [
        '{"x":"a","x_error":null,"x_meta":{"attempts":2,"input_tokens":3,"output_tokens":4,"cached_tokens":null}}',
        '{"x":null,"x_error":"timeout: slow","x_meta":null}',
    ]
    (tmp_path / "part-00000000.jsonl").write_text("\n".join(rows) + "\n")
    counters = output.read_counters("part-00000000.jsonl")
    assert (counters.num_rows, counters.num_failed, counters.num_attempts) == (2, 1, 2)
    assert (counters.input_tokens, counters.output_tokens, counters.errors) == (3, 4, {"timeout": 1})


class Death(BaseException):
    """As good as a kill: nothing after it is done."""


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_worker_that_slept_before_replacing_leaves_no_rows_of_its_job(tmp_path: Path, kind: str) -> None:
    """The folder went to a new job meanwhile, which has committed: its file is made anew."""
    output, name = OutputFolder(str(tmp_path / "out"), kind), f"part-00000000.{kind}"
    schema = pa.schema([("x", pa.string()), ("x_error", pa.string())])
    record = {"stage": {"output_column": "x"}}

    def commit(job_id: str) -> None:
        with output.writer(schema, job_id) as writer:
            writer.write(pa.table([[job_id], [None]], schema=schema))
            writer.commit(name, Counters(num_rows=1))

    def take_over_at(place: str, job_id: str, *, commits: bool) -> None:
        def take_over(reached: str) -> None:
            if reached == place:
                failpoints.listen(None)
                output.replace_job({"id": job_id, **record})
                if commits:
                    commit(job_id)

        failpoints.listen(take_over)

    output.check_writable()
    output.write_job({"id": "first", **record})
    take_over_at("commit.before_publish", "second", commits=False)
    with pytest.raises(RunError, match="another job"):
        commit("first")  # its file is there, and is replaced
    take_over_at("commit.before_replace", "third", commits=True)
    with pytest.raises(RunError, match="another job"):
        commit("second")
    assert not output.has(name, "third")
    commit("third")
    assert [row["x"] for row in output.rows(name)] == ["third"]
    assert output.has(name, "third")


@pytest.mark.parametrize("place", ["commit.before_replace", "commit.between_replace"])
def test_counts_follow_the_rows_whenever_a_replacement_dies(tmp_path: Path, place: str) -> None:
    """Before the new file is there or right after it: what is counted is what is there."""
    output = OutputFolder(str(tmp_path), "jsonl")
    output.check_writable()
    output.write_job({"stage": {"output_column": "x"}})
    schema = pa.schema([("x", pa.string()), ("x_error", pa.string())])
    failed = pa.table([[None, "b"], ["timeout: slow", None]], schema=schema)
    with output.writer(schema) as writer:
        writer.write(failed)
        writer.commit("part-00000000.jsonl", Counters(num_rows=2, num_failed=1, errors={"timeout": 1}))

    def die(name: str) -> None:
        if name == place:
            raise Death

    failpoints.listen(die)
    with output.writer(schema) as writer:
        writer.write(pa.table([["a", "b"], [None, None]], schema=schema))
        with pytest.raises(Death):
            writer.replace("part-00000000.jsonl", Counters(num_rows=2))
    failpoints.listen(None)
    num_failed = sum(row["x_error"] is not None for row in output.head(2))
    assert output.read_counters("part-00000000.jsonl").num_failed == num_failed
