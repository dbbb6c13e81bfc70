"""Data grows: new input files become new partitions after the old ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_fixtures import JobRunner

from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.errors import ConfigError, InputError
from nemo_llm_stage.run import verify_output


def add_file(job: JobRunner, name: str = "0_new.jsonl", numbers: range = range(40, 52), **columns: Any) -> Path:
    """Its name sorts before the old ones."""
    rows = [{"id": i, "text": f"row {i}", "tags": [str(i)]} | columns for i in numbers]
    path = job.folder / "in" / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def parts(job: JobRunner) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((job.folder / "out").glob("part-*"))}


@pytest.fixture
def failing_place() -> Iterator[list[str]]:
    """The name of a failpoint at which the next run dies."""
    places: list[str] = []

    def die(name: str) -> None:
        if name in places:
            places.clear()
            raise KeyboardInterrupt(name)

    failpoints.listen(die)
    yield places
    failpoints.listen(None)


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", ["0_new.jsonl", "z_new.parquet"])
def test_new_files_become_new_partitions(job: JobRunner, name: str, output_format: str) -> None:
    """Only their rows are sent; what was committed stays to the byte."""
    job.run(output_format=output_format)
    before, num_requests = parts(job), job.server.stats.num_requests
    add_file(job, name)
    result = job.run(output_format=output_format)
    assert job.server.stats.num_requests - num_requests == 12
    assert {key: value for key, value in parts(job).items() if key in before} == before
    assert [row["id"] for row in job.rows()] == list(range(52))
    assert all(row["x"] for row in job.rows())
    assert (result.counters.num_rows, result.num_rows_before) == (52, 40)
    assert verify_output(str(job.folder / "out"), compares_rows=True).is_complete


def test_a_job_that_stopped_grows_too(job: JobRunner, failing_place: list[str]) -> None:
    """Its own open partitions are run with the new ones."""
    failing_place.append("commit.after_publish")
    with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever a worker makes of the death
        job.run()
    add_file(job)
    job.run()
    assert [row["id"] for row in job.rows()] == list(range(52))


@pytest.mark.parametrize("place", ["extend.before", "extend.after", "read.before", "commit.before_publish"])
def test_it_can_be_killed_at_any_time(job: JobRunner, failing_place: list[str], place: str) -> None:
    """A folder whose job has grown is complete only when the new rows are there."""
    job.run()
    add_file(job)
    failing_place.append(place)
    with pytest.raises(BaseException):  # noqa: B017, PT011 - as above
        job.run()
    out = str(job.folder / "out")
    assert verify_output(out).is_complete == (place == "extend.before")
    job.run()
    assert verify_output(out).is_complete
    assert [row["id"] for row in job.rows()] == list(range(52))


def test_it_grows_again_and_again(job: JobRunner) -> None:
    """Every day; a day without new files sends nothing."""
    job.run()
    for day in range(3):
        add_file(job, f"day{day}.jsonl", range(100 * day + 100, 100 * day + 103))
        job.run()
    num_requests = job.server.stats.num_requests
    job.run()
    assert job.server.stats.num_requests == num_requests == 49
    assert [row["id"] for row in job.rows()][40:] == [100, 101, 102, 200, 201, 202, 300, 301, 302]


def test_new_files_can_be_refused(job: JobRunner) -> None:
    """By `on_new_input: refuse`."""
    job.run()
    add_file(job)
    with pytest.raises(InputError, match=r"0_new\.jsonl is new"):
        job.run(on_new_input="refuse")


def test_a_changed_old_file_is_refused_all_the_same(job: JobRunner) -> None:
    """With both told."""
    job.run()
    add_file(job)
    add_file(job, "b.jsonl", range(5))
    with pytest.raises(InputError, match=r"b\.jsonl has changed"):
        job.run()
    assert len(job.rows()) == 40


@pytest.mark.parametrize(
    ("columns", "words"),
    [({"more": 1}, "has a column 'more' that the job so far does not have"), ({"id": "x"}, "column 'id'")],
    ids=["a column more", "another type"],
)
def test_new_files_must_have_the_same_columns(job: JobRunner, columns: dict[str, Any], words: str) -> None:
    """The output has one schema; nothing is sent and nothing changes."""
    job.run()
    add_file(job, "new.parquet", **columns)
    num_requests = job.server.stats.num_requests
    with pytest.raises(ConfigError, match=words):
        job.run()
    assert job.server.stats.num_requests == num_requests
    assert verify_output(str(job.folder / "out")).is_complete


def test_failed_rows_of_a_grown_job_can_be_retried(job: JobRunner) -> None:
    """Old and new ones."""
    stage = job.stage(parser=lambda text: 1 / 0, max_reasks=0)
    job.run(stage, max_failed_rows=None)
    add_file(job)
    job.run(stage, max_failed_rows=None)
    assert job.retry(stage).num_retried == 52


def test_the_same_input_by_another_path_is_no_new_one(job: JobRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another working directory, through a link: nothing is asked again, and nothing is refused."""
    (job.folder / "sub").mkdir()
    monkeypatch.chdir(job.folder / "sub")
    job.run(input="../in")
    monkeypatch.chdir(job.folder)
    for path in ("in", "sub/../in"):
        assert job.run(input=path).this_run.num_rows == 0
    (job.folder / "link").symlink_to("in")
    assert job.run(input="link").this_run.num_rows == 0
    (job.folder / "in" / "c.jsonl").write_text(json.dumps({"id": 40, "text": "row 40", "tags": []}) + "\n")
    assert job.run(input="in").this_run.num_rows == 1
    assert verify_output(str(job.folder / "out")).is_complete
