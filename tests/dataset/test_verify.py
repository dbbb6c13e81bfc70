"""`verify` looks at the files themselves and names what is off."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.files import find_files
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.plan import Plan, make_plan
from nemo_llm_stage.dataset.verify import verify

JOB = {"format_version": 3, "stage": {"output_column": "x"}}
SCHEMA = pa.schema([(name, pa.string()) for name in ("text", "x", "x_error", "x_skipped")])


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Three partitions of ten rows."""
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(30)]}), tmp_path / "in.parquet")
    return make_plan(find_files(tmp_path / "in.parquet"), rows_per_partition=10)


@pytest.fixture(params=["parquet", "jsonl"])
def output(tmp_path: Path, plan: Plan, request: pytest.FixtureRequest) -> OutputFolder:
    """All three committed; one row failed, one was skipped."""
    output = OutputFolder(str(tmp_path / "out"), request.param)
    output.check_writable()
    output.write_job(JOB)
    for number, partition in enumerate(plan.partitions):
        commit(output, output.name_of(partition), 10, error=["timeout: slow", "skipped: null", None][number])
    return output


def commit(
    output: OutputFolder,
    name: str,
    num_rows: int,
    *,
    error: str | None = None,
    counters: Counters | None = None,
    schema: pa.Schema = SCHEMA,
) -> None:
    reasons = [error] + [None] * (num_rows - 1)
    is_skipped = error is not None and error.startswith("skipped")
    columns = [[None] * num_rows, reasons] if is_skipped else [reasons, [None] * num_rows]
    table = pa.table([["t"] * num_rows, ["v"] * num_rows, *columns], schema=SCHEMA).cast(schema)
    counted = Counters(num_rows=num_rows)
    if error:
        counted.num_failed, counted.num_skipped = (0, 1) if is_skipped else (1, 0)
        counted.errors = {} if counted.num_skipped else {"timeout": 1}
        counted.errors_by_column = {"x": 1}
    with output.writer(schema) as writer:
        writer.write(table)
        writer.commit(name, counters or counted)


def name(output: OutputFolder, index: int) -> str:
    return f"part-{index:08}.{output.format}"


def test_a_whole_output_is_proved(output: OutputFolder, plan: Plan) -> None:
    """Rows in = rows out = answered + failed + skipped."""
    verification = verify(output, plan)
    assert verification.is_complete
    counters = verification.counters
    assert (counters.num_rows, counters.num_answered, counters.num_failed, counters.num_skipped) == (30, 28, 1, 1)


def test_a_missing_file_is_counted(output: OutputFolder, plan: Plan) -> None:
    """It is not off, but the job is not done."""
    output.folder.remove(name(output, 1))
    verification = verify(output, plan)
    assert (verification.is_complete, verification.num_missing, verification.problems) == (False, 1, [])


def test_a_file_too_many_is_named(output: OutputFolder, plan: Plan) -> None:
    """A reader of the folder would take it for rows of the job."""
    commit(output, name(output, 7), 3)
    assert verify(output, plan).problems == [f"{name(output, 7)} belongs to no partition of the plan."]


def test_a_file_of_another_format_is_named(output: OutputFolder, plan: Plan) -> None:
    """Likewise."""
    other = "part-00000000.jsonl" if output.format == "parquet" else "part-00000000.parquet"
    (Path(output.folder.path()) / other).write_bytes(b"x")
    assert verify(output, plan).problems == [f"{other} belongs to no partition of the plan."]


def test_a_file_with_other_rows_than_its_input_is_named(output: OutputFolder, plan: Plan) -> None:
    """One row too few."""
    output.folder.remove(name(output, 1))
    output.state.remove(f"commits/{name(output, 1)}.json")
    commit(output, name(output, 1), 9)
    assert verify(output, plan).problems == [f"{name(output, 1)}: 9 rows were finished, but its input has 10."]


def test_a_file_that_was_cut_off_is_named(output: OutputFolder, plan: Plan) -> None:
    """By a full disk, or by hand."""
    path = Path(output.folder.path(name(output, 1)))
    path.write_bytes(path.read_bytes()[:-20])
    problems = verify(output, plan).problems
    assert [problem.partition(" ")[0] for problem in problems] == [name(output, 1)]


def test_counts_that_the_rows_do_not_bear_out_are_named(output: OutputFolder, plan: Plan) -> None:
    """The errors in the file are counted, not believed."""
    output.folder.remove(name(output, 2))
    output.state.remove(f"commits/{name(output, 2)}.json")
    commit(output, name(output, 2), 10, error="timeout: slow", counters=Counters(num_rows=10))
    problems = verify(output, plan).problems
    assert problems == [f"{name(output, 2)} has 1 rows that failed or were skipped in x, but 0 were counted."]


def test_another_schema_is_named(tmp_path: Path, plan: Plan) -> None:
    """All files have one schema, or a reader stumbles."""
    output = OutputFolder(str(tmp_path / "out"))
    output.check_writable()
    output.write_job(JOB)
    for index in range(3):
        schema = SCHEMA if index < 2 else SCHEMA.set(1, pa.field("x", pa.large_string()))
        commit(output, name(output, index), 10, schema=schema)
    assert verify(output, plan).problems == [f"{name(output, 2)} has another schema than {name(output, 0)}."]


def test_rows_that_only_reading_tells_are_taken_from_the_file(output: OutputFolder, plan: Plan) -> None:
    """Of JSONL cut by bytes the plan knows no numbers."""
    partitions = tuple(dataclasses.replace(partition, num_rows=None) for partition in plan.partitions)
    assert verify(output, dataclasses.replace(plan, partitions=partitions)).is_complete


def test_a_file_of_an_earlier_job_is_named(output: OutputFolder, plan: Plan) -> None:
    """A worker of a job that was thrown away since woke up late, and was first."""
    output.state.remove("job.json")
    output.write_job(JOB | {"id": "new"})
    problems = verify(output, plan).problems
    assert len(problems) == 3
    assert (
        problems[0]
        == f"{name(output, 0)} was written by an earlier job; remove it and run the job again: it is made anew."
    )
