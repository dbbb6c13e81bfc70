"""Delta and Iceberg tables as input: one version's rows, its columns, and nothing that was deleted."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nemo_llm_stage.dataset.files import find_input
from nemo_llm_stage.dataset.plan import Plan, cut, make_plan
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.errors import InputError
from nemo_llm_stage.run import verify_output

deltalake = pytest.importorskip("deltalake")
pytest.importorskip("pyiceberg")

ROWS = pa.table(
    {
        "id": [1, 2, 3, 4],
        "text": ["a", "b", None, "d"],
        "day": pa.array([dt.date(2024, 1, 2), None, dt.date(2024, 1, 2), dt.date(2024, 3, 4)]),
    }
)


def write_delta(folder: Path, table: pa.Table = ROWS, **options: Any) -> None:
    deltalake.write_deltalake(str(folder), table, **options)


def write_iceberg(folder: Path, table: pa.Table = ROWS, num: int = 1) -> Any:
    from pyiceberg.catalog.memory import InMemoryCatalog

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        catalog = InMemoryCatalog("c", warehouse=f"file://{folder.parent}")
        catalog.create_namespace("n")
        made = catalog.create_table("n.t", schema=table.schema, location=f"file://{folder}")
        for _ in range(num):
            made.append(table)
    return made


def plan_of(folder: Path, **versions: str) -> Plan:
    found = find_input(folder, {str(folder): version for version in versions.values()})
    return make_plan(found.files, tables=found.tables)


def rows_of(plan: Plan) -> list[dict[str, Any]]:
    tables = [table for part in plan.partitions for table in read_partition(part, plan.schema, rows_per_chunk=2)]
    assert all(table.schema == plan.schema for table in tables)
    return sorted((row for table in tables for row in table.to_pylist()), key=lambda row: row["id"])


def test_a_delta_table_is_its_newest_version(tmp_path: Path) -> None:
    """Rows that were replaced do not come back; columns that only the log has are there, in their types and places."""
    write_delta(tmp_path / "t", ROWS.slice(0, 1))
    write_delta(tmp_path / "t", ROWS, partition_by=["day"], mode="overwrite", schema_mode="overwrite")
    plan = plan_of(tmp_path / "t")
    assert (plan.schema.names, plan.schema.types) == (ROWS.schema.names, ROWS.schema.types)
    assert rows_of(plan) == ROWS.to_pylist()
    assert plan.versions == {str(tmp_path / "t"): "1"}


def test_a_column_that_was_added_later_is_null_before(tmp_path: Path) -> None:
    """As every reader of the table has it."""
    write_delta(tmp_path / "t", ROWS.select(["id"]))
    write_delta(tmp_path / "t", pa.table({"id": [9], "more": ["m"]}), mode="append", schema_mode="merge")
    rows = rows_of(plan_of(tmp_path / "t"))
    assert [row["more"] for row in rows] == [None, None, None, None, "m"]


def test_an_iceberg_table_is_its_newest_snapshot(tmp_path: Path) -> None:
    """All of its appends, and no file that an overwrite put away."""
    table = write_iceberg(tmp_path / "t", num=2)
    assert rows_of(plan_of(tmp_path / "t")) == sorted(ROWS.to_pylist() * 2, key=lambda row: row["id"])
    table.overwrite(ROWS.slice(1, 1))
    assert rows_of(plan_of(tmp_path / "t")) == ROWS.slice(1, 1).to_pylist()


def test_a_version_that_is_asked_for_is_read(tmp_path: Path) -> None:
    """Whatever came after; that there is a newer one is told."""
    write_delta(tmp_path / "d", ROWS.slice(0, 1))
    write_delta(tmp_path / "d", ROWS, mode="append")
    assert len(rows_of(plan_of(tmp_path / "d", pinned="0"))) == 1
    table = write_iceberg(tmp_path / "i")
    first = str(table.current_snapshot().snapshot_id)
    table.append(ROWS)
    assert len(rows_of(plan_of(tmp_path / "i", pinned=first))) == 4
    (notice,) = find_input(tmp_path / "i", {str(tmp_path / "i"): first}).notices
    assert f"read at version {first}; it has a newer one" in notice


DELETED = [3, 4, 7, 11, 18, 29]

_RFC1924 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def delete_some(folder: Path) -> None:
    """
    Delete the rows `DELETED` of a table of one file with a deletion vector.

    Source: Delta's PROTOCOL.md, "Deletion Vector Format": a portable Roaring bitmap, inline as Z85.
    """
    first = folder / "_delta_log" / f"{0:020}.json"
    added = next(record["add"] for line in first.open() if "add" in (record := json.loads(line)))
    size = len(DELETED)
    bitmap = struct.pack(f"<IQIIIHHI{size}H", 1681511377, 1, 0, 12346, 1, 0, size - 1, 16, *DELETED)
    text = base64.b85encode(bitmap).decode().translate(str.maketrans(_RFC1924, _Z85))
    vector = {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(bitmap), "cardinality": size}
    removed = {"path": added["path"], "dataChange": True, "deletionTimestamp": 1}
    records = [{"remove": removed}, {"add": added | {"deletionVector": vector}}]
    (first.parent / f"{1:020}.json").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_rows_of_a_deletion_vector_do_not_come_back(job: Any) -> None:
    """In whatever partitions they are; counts and `verify` know of them."""
    folder = job.folder / "t"
    write_delta(
        folder,
        pa.table({"id": range(40), "text": ["t"] * 40}),
        configuration={
            "delta.enableDeletionVectors": "true",
        },
    )
    delete_some(folder)
    job.run(input=folder, rows_per_partition=5)
    assert [row["id"] for row in job.rows()] == [number for number in range(40) if number not in DELETED]
    verification = verify_output(str(job.folder / "out"), compares_rows=True)
    assert (verification.problems, verification.counters.num_rows) == ([], 34)
    plan = plan_of(folder)
    (whole,) = make_plan(find_input(folder).files, tables=find_input(folder).tables, rows_per_partition=99).partitions
    parts = cut(whole, 0.5)
    assert parts is not None
    assert [part.num_rows for part in parts] == [15, 19]
    assert rows_of(dataclasses.replace(plan, partitions=parts)) == rows_of(plan)


def renamed(tmp_path: Path) -> Path:
    table = write_iceberg(tmp_path / "t")
    with table.update_schema() as update:
        update.rename_column("text", "words")
    return tmp_path / "t"


def test_an_iceberg_table_with_renamed_columns_is_refused(tmp_path: Path) -> None:
    """With the command that makes Parquet of it."""
    with pytest.raises(InputError, match=r"columns that were renamed.*pip install 'pyiceberg\[pyarrow\]' && python -c"):
        plan_of(renamed(tmp_path))


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_without_its_package_a_table_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it; its files are never read as they lie there."""
    (write_delta if kind == "delta" else write_iceberg)(tmp_path / "t")
    monkeypatch.setitem(sys.modules, {"delta": "deltalake", "iceberg": "pyiceberg"}[kind], None)
    with pytest.raises(InputError, match=rf"pip install 'nemo-llm-stage\[{kind}\]'"):
        find_input(tmp_path / "t")


def test_a_table_within_the_input_is_named_alone(tmp_path: Path) -> None:
    """A folder above it or in it, or a glob over its files, would take files for rows."""
    write_delta(tmp_path / "d" / "t", ROWS, partition_by=["day"])
    write_iceberg(tmp_path / "i" / "t")
    for name in ("d", "d/t/*/*.parquet", "d/t/day=2024-01-02"):
        with pytest.raises(InputError, match="table of Delta: name this folder itself"):
            find_input(tmp_path / name)
    with pytest.raises(InputError, match="table of Iceberg: name this folder itself"):
        find_input(tmp_path / "i" / "t" / "data")


def test_a_version_whose_files_are_gone_is_refused(tmp_path: Path) -> None:
    """Vacuumed, for one."""
    write_delta(tmp_path / "t")
    next((tmp_path / "t").glob("*.parquet")).unlink()
    with pytest.raises(InputError, match=r"of the table .* at version 0 is gone"):
        find_input(tmp_path / "t")


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_a_job_goes_on_at_the_version_it_was_planned_over(job: Any, output_format: str) -> None:
    """Rows that are written meanwhile are of a newer version, which --restart reads."""
    folder = job.folder / "t"
    write_delta(folder, ROWS, partition_by=["day"])
    job.run(input=folder, output_format=output_format, rows_per_partition=1)
    first = job.rows()
    next((job.folder / "out").glob("part-*")).unlink()
    write_delta(folder, ROWS, mode="append")
    job.run(input=folder, output_format=output_format, rows_per_partition=1)
    assert [row["id"] for row in job.rows()] == [row["id"] for row in first]
    assert {str(row["day"]) for row in job.rows()} == {"2024-01-02", "2024-03-04", "None"}
    assert verify_output(str(job.folder / "out"), compares_rows=True).problems == []
    job.run(input=folder, output_format=output_format, restart=True)
    assert len(job.rows()) == 8
