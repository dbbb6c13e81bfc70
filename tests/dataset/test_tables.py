"""Delta and Iceberg tables as input: one version's rows, its columns, and nothing that was deleted."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import itertools
import json
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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


def bitmap_of(rows: list[int]) -> bytes:
    """Return the bitmap of a deletion vector, which Delta and Iceberg have alike."""
    size = len(rows)
    return struct.pack(f"<IQIIIHHI{size}H", 1681511377, 1, 0, 12346, 1, 0, size - 1, 16, *rows)


def delete_some(folder: Path) -> None:
    """
    Delete the rows `DELETED` of a table of one file with a deletion vector.

    Source: Delta's PROTOCOL.md, "Deletion Vector Format": a portable Roaring bitmap, inline as Z85.
    """
    first = folder / "_delta_log" / f"{0:020}.json"
    added = next(record["add"] for line in first.open() if "add" in (record := json.loads(line)))
    size, bitmap = len(DELETED), bitmap_of(DELETED)
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


def map_columns(folder: Path, mode: str, columns: dict[str, str]) -> None:
    """Give columns of a Delta table other names than in its files: name there → name, empty for one that is dropped."""
    first = folder / "_delta_log" / f"{0:020}.json"
    records = [json.loads(line) for line in first.open()]
    for record in records:
        if "protocol" in record:
            record["protocol"] = {"minReaderVersion": 2, "minWriterVersion": 5}
        if "metaData" in record:
            schema = json.loads(record["metaData"]["schemaString"])
            schema["fields"] = list(_mapped(schema["fields"], columns, itertools.count(1)))
            record["metaData"]["schemaString"] = json.dumps(schema)
            record["metaData"]["configuration"] = {
                "delta.columnMapping.mode": mode,
                "delta.columnMapping.maxColumnId": 9,
            }
    first.write_text("".join(json.dumps(record) + "\n" for record in records))


def _mapped(fields: list[Any], columns: dict[str, str], ids: Iterator[int]) -> Iterator[Any]:
    for field in fields:
        if not (name := columns[field["name"]]):
            continue
        metadata = {"delta.columnMapping.id": next(ids), "delta.columnMapping.physicalName": field["name"]}
        if isinstance(field["type"], dict):
            field["type"]["fields"] = list(_mapped(field["type"]["fields"], columns, ids))
        yield field | {"name": name, "metadata": metadata}


@pytest.mark.parametrize("mode", ["name", "id"])
def test_columns_that_delta_renamed_have_their_names(job: Any, mode: str) -> None:
    """Also within structs, and where a name was another column's before; what was dropped does not come back."""
    folder = job.folder / "t"
    inner = [{"p": "a", "q": 1}, None, {"p": None, "q": 3}]
    write_delta(folder, pa.table({"text": ["no"] * 3, "col-1": ["a", "b", "c"], "col-2": inner}))
    map_columns(folder, mode, {"text": "", "col-1": "text", "col-2": "more", "p": "q", "q": "p"})
    job.run(input=folder)
    rows = job.rows()
    assert [row["text"] for row in rows] == ["a", "b", "c"]
    assert [row["more"] for row in rows] == [{"q": "a", "p": 1}, None, {"q": None, "p": 3}]
    assert pa.table(deltalake.DeltaTable(str(folder)).scan()).to_pylist() == [
        {"text": row["text"], "more": row["more"]} for row in rows
    ]
    assert verify_output(str(job.folder / "out"), compares_rows=True).problems == []


def test_columns_that_iceberg_renamed_have_their_names(job: Any) -> None:
    """In files from before and after, whose columns are told apart by their ids."""
    table = write_iceberg(job.folder / "t", ROWS.select(["id", "text"]))
    for before, after in (("text", "other"), ("id", "text"), ("other", "id")):  # they swap names
        with table.update_schema() as update:
            update.rename_column(before, after)
    table.append(pa.table({"text": [5], "id": ["e"]}))
    job.run(job.stage(prompt="Say {{ id }}"), input=job.folder / "t")
    rows = sorted(({"text": row["text"], "id": row["id"]} for row in job.rows()), key=lambda row: row["text"])
    assert rows == sorted(table.scan().to_arrow().to_pylist(), key=lambda row: row["text"])
    assert [row["text"] for row in rows] == [1, 2, 3, 4, 5]
    assert verify_output(str(job.folder / "out"), compares_rows=True).problems == []


def test_files_without_ids_in_a_table_with_renamed_columns_are_refused(tmp_path: Path) -> None:
    """Nobody could say which of their columns is which."""
    table = write_iceberg(tmp_path / "t")
    pq.write_table(ROWS, tmp_path / "t" / "data" / "added.parquet")
    table.add_files([f"file://{tmp_path}/t/data/added.parquet"])
    assert len(rows_of(plan_of(tmp_path / "t"))) == 8
    with table.update_schema() as update:
        update.rename_column("text", "words")
    with pytest.raises(InputError, match=r"added.parquet' has no ids of columns"):
        plan_of(tmp_path / "t")


def test_a_file_without_a_column_of_its_partition_is_refused(tmp_path: Path) -> None:
    """The table's log alone has its value, as in tables that were Hive's: it would be null."""
    table = write_iceberg(tmp_path / "t", num=0)
    with table.update_spec() as update:
        update.add_identity("text")
    table.append(ROWS)
    assert rows_of(plan_of(tmp_path / "t")) == ROWS.to_pylist()
    path = next((tmp_path / "t" / "data").glob("text=a/*.parquet"))
    pq.write_table(pq.ParquetFile(path).read().drop_columns(["text"]), path)
    with pytest.raises(InputError, match="lacks the column 'text', by which the table"):
        plan_of(tmp_path / "t")


def write_puffin(path: Path, data: str, rows: list[int]) -> None:
    """Write a deletion vector. Source: Iceberg's puffin-spec.md, "deletion-vector-v1"."""
    bitmap = bitmap_of(rows)
    blob = struct.pack(">I", len(bitmap)) + bitmap + struct.pack(">I", zlib.crc32(bitmap))
    properties = {"referenced-data-file": data, "cardinality": str(len(rows))}
    kind = {"type": "deletion-vector-v1", "fields": [], "snapshot-id": -1, "sequence-number": -1}
    footer = json.dumps({"blobs": [kind | {"offset": 4, "length": len(blob), "properties": properties}]}).encode()
    path.write_bytes(b"PFA1" + blob + b"PFA1" + footer + struct.pack("<II", len(footer), 0) + b"PFA1")


def delete_from_iceberg(folder: Path, content: Any, deletes: pa.Table, file_format: str = "PARQUET") -> None:
    """Commit a file that deletes rows, as engines do that merge on read; pyiceberg writes none. Format version 2."""
    from pyiceberg import manifest
    from pyiceberg.io.pyarrow import PyArrowFileIO
    from pyiceberg.table import StaticTable
    from pyiceberg.typedef import Record

    class DeleteWriter(manifest.ManifestWriterV2):
        def content(self) -> manifest.ManifestContent:
            return manifest.ManifestContent.DELETES

        @property
        def _meta(self) -> dict[str, str]:
            return super()._meta | {"content": "deletes"}

    newest = max((folder / "metadata").glob("*.metadata.json"))
    table, io = StaticTable.from_metadata(str(newest)), PyArrowFileIO()
    path = folder / "data" / f"deletes.{file_format.lower()}"
    if file_format == "PUFFIN":
        write_puffin(path, deletes["file_path"][0].as_py(), deletes["pos"].to_pylist())
    else:
        pq.write_table(deletes, path)
    file = manifest.DataFile.from_args(
        content=content,
        file_path=f"file://{path}",
        file_format=manifest.FileFormat[file_format],
        partition=Record(),
        record_count=deletes.num_rows,
        file_size_in_bytes=path.stat().st_size,
        equality_ids=[1] if content is manifest.DataFileContent.EQUALITY_DELETES else None,
    )
    file.spec_id = 0
    out = io.new_output(f"file://{folder}/metadata/deletes.avro")
    with DeleteWriter(table.spec(), table.schema(), out, 7, "deflate") as writer:
        status = manifest.ManifestEntryStatus.ADDED
        writer.add_entry(manifest.ManifestEntry.from_args(status=status, snapshot_id=7, data_file=file))
    snapshot = table.current_snapshot()
    assert snapshot is not None
    listed = io.new_output(f"file://{folder}/metadata/snap-7.avro")
    with manifest.write_manifest_list(2, listed, 7, snapshot.snapshot_id, 2, "deflate") as manifests:
        manifests.add_manifests([*snapshot.manifests(io), writer.to_manifest_file()])
    metadata = json.loads(newest.read_text())
    added = metadata["snapshots"][-1] | {"snapshot-id": 7, "sequence-number": 2, "manifest-list": listed.location}
    metadata["snapshots"].append(added | {"parent-snapshot-id": snapshot.snapshot_id})
    metadata |= {"current-snapshot-id": 7, "last-sequence-number": 2}
    metadata["refs"]["main"]["snapshot-id"] = 7
    (newest.parent / "00009-deletes.metadata.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize("file_format", ["PARQUET", "PUFFIN"])
def test_rows_of_a_positional_delete_file_do_not_come_back(job: Any, file_format: str) -> None:
    """In whatever partitions they are."""
    from pyiceberg.manifest import DataFileContent
    from pyiceberg.table import StaticTable

    folder = job.folder / "t"
    write_iceberg(folder, pa.table({"id": range(40), "text": ["t"] * 40}))
    (data,) = (folder / "data").glob("*.parquet")
    deletes = pa.table({"file_path": [f"file://{data}"] * len(DELETED), "pos": DELETED})
    delete_from_iceberg(folder, DataFileContent.POSITION_DELETES, deletes, file_format)
    job.run(input=folder, rows_per_partition=5)
    expected = [number for number in range(40) if number not in DELETED]
    assert [row["id"] for row in job.rows()] == expected
    theirs = StaticTable.from_metadata(str(folder / "metadata" / "00009-deletes.metadata.json")).scan().to_arrow()
    assert theirs.column("id").to_pylist() == expected
    verification = verify_output(str(job.folder / "out"), compares_rows=True)
    assert (verification.problems, verification.counters.num_rows) == ([], 34)


def test_a_table_with_equality_deletes_is_refused(tmp_path: Path) -> None:
    """With what to do: pyiceberg does not read these."""
    from pyiceberg.manifest import DataFileContent

    write_iceberg(tmp_path / "t")
    delete_from_iceberg(tmp_path / "t", DataFileContent.EQUALITY_DELETES, pa.table({"id": [2]}))
    with pytest.raises(InputError, match=r"equality delete files .*CALL catalog.system.rewrite_data_files"):
        plan_of(tmp_path / "t")


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
