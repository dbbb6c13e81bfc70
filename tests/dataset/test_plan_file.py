"""The plan of a large job is beside its record, and is read as if it were in it."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_llm_stage.dataset.plan_file import join_plan, plan_files_of, split_plan

RECORD: dict[str, Any] = {
    "format_version": 3,
    "id": "abc",
    "files": [
        {"path": "s3://in/a.parquet", "size": 10, "version": '"e"', "folder_values": []},
        {"path": "in/y=1/ü.parquet", "size": 2**40, "version": "1.5", "folder_values": [["y", "1"], ["z", None]]},
    ],
    "partitions": [[0, 0, 10, 10], [0, 10, 20, None], [1, 0, 5, 3, [1, 4]]],
    "config": None,
}


def test_a_small_plan_stays_in_the_record() -> None:
    """As ever."""
    assert split_plan(RECORD) == (RECORD, {})


def test_a_large_plan_comes_back_as_it_was() -> None:
    """With deleted rows, folder values and rows that were not counted; an older version refuses the record."""
    slim, files = split_plan(RECORD, 1)
    assert "partitions" not in slim
    assert "files" not in slim
    assert slim["format_version"] == 4
    assert plan_files_of(slim) == set(files)
    assert join_plan(slim, files.__getitem__) == {**RECORD, "format_version": 4}


def test_a_plan_of_another_job_has_another_name() -> None:
    """So that neither takes the place of the other before the record says so; likewise one with more input."""
    names = set(split_plan(RECORD, 1)[1])
    longer = {**RECORD, "partitions": [*RECORD["partitions"], [1, 5, 6, 1]]}
    assert not names & set(split_plan({**RECORD, "id": "other"}, 1)[1])
    assert not names & set(split_plan(longer, 1)[1])
    wider = {**RECORD, "files": [*RECORD["files"], {**RECORD["files"][0], "path": "in/empty.jsonl"}]}
    assert not names & set(split_plan(wider, 1)[1])


def test_a_record_of_the_first_version_keeps_its_plan() -> None:
    """Its version says what its columns mean."""
    old = {**RECORD, "format_version": 2}
    assert split_plan(old, 1) == (old, {})


def test_a_damaged_plan_is_told() -> None:
    """By its checksum."""
    slim, files = split_plan({**RECORD, "id": "never read"}, 1)
    damaged = {name: data[:-9] + b"x" + data[-8:] for name, data in files.items()}
    with pytest.raises(ValueError, match="does not fit its checksum"):
        join_plan(slim, damaged.__getitem__)
