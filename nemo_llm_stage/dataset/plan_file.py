"""
The plan of a large job: two Parquet files beside its record, in place of lists within it.

A record with so many files or partitions would have megabytes, and everybody who looks at the job reads it. Knows
records and bytes; knows nothing of what a partition is.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

MAX_IN_RECORD = 10_000
"""Files or partitions up to which a plan stays in the record."""

PLAN_VERSION = 4
"""Format version of a record whose plan is beside it: versions that do not know that refuse it."""

PREFIX = "plan-"
_PLAN = "plan"
_FILES = pa.schema(
    [("path", pa.string()), ("size", pa.int64()), ("version", pa.string()), ("folder_values", pa.string())]
)
_PARTITIONS = pa.schema(
    [
        ("file", pa.int64()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("num_rows", pa.int64()),
        ("deleted", pa.list_(pa.int64())),
    ]
)


def split_plan(
    record: Mapping[str, Any], max_in_record: int = MAX_IN_RECORD
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """
    Return a record as it is written, and the files to write before it, by name.

    Args:
        record: With all files and partitions.
        max_in_record: How many of each may stay in it.
    """
    files, partitions = record.get("files", ()), record.get("partitions", ())
    is_of_old_version = record.get("format_version", 0) < PLAN_VERSION - 1  # which says how its columns are meant
    if is_of_old_version or max(len(files), len(partitions)) <= max_in_record:
        return dict(record), {}
    tables = {
        "files": _encode([_file_values(file) for file in files], _FILES),
        "partitions": _encode([_partition_values(part) for part in partitions], _PARTITIONS),
    }
    stem = f"{PREFIX}{record['id']}-{_checksum(b''.join(tables.values()))}"  # not that of a plan still in the record
    names = {part: f"{stem}-{part}.parquet" for part in tables}
    plan = {
        part: {"name": names[part], "num": len(record[part]), "checksum": _checksum(table)}
        for part, table in tables.items()
    }
    data = {names[part]: table for part, table in tables.items()}
    slim = {name: value for name, value in record.items() if name not in ("files", "partitions")}
    return {**slim, "format_version": max(PLAN_VERSION, record["format_version"]), _PLAN: plan}, data


def join_plan(record: Mapping[str, Any], read: Callable[[str], bytes]) -> dict[str, Any]:
    """
    Return a record with all files and partitions, as it was before `split_plan`.

    Args:
        record: As it was read.
        read: Returns the bytes of a file beside it.

    Raises:
        OSError: A file cannot be read.
        ValueError: One is damaged; also `pyarrow.ArrowException` and KeyError.
    """
    plan = record.get(_PLAN)
    if plan is None:
        return dict(record)
    cached = _LAST.get(key := repr(plan))
    if cached is not None:
        return _joined(record, *cached)
    files = [
        {**row, "folder_values": orjson.loads(row["folder_values"])} for row in _decode(plan["files"], read, _FILES)
    ]
    partitions = [
        [*(row[name] for name in ("file", "start", "stop", "num_rows")), *([row["deleted"]] if row["deleted"] else [])]
        for row in _decode(plan["partitions"], read, _PARTITIONS)
    ]
    _LAST.clear()
    _LAST[key] = files, partitions
    return _joined(record, files, partitions)


_LAST: dict[str, tuple[list[Any], list[Any]]] = {}
"""The plan that was read last, by its names and checksums: a run reads its own several times."""


def _joined(record: Mapping[str, Any], files: list[Any], partitions: list[Any]) -> dict[str, Any]:
    rest = {name: value for name, value in record.items() if name != _PLAN}
    return {**rest, "files": files, "partitions": partitions}


def plan_files_of(record: Mapping[str, Any]) -> set[str]:
    """Return the names of the files that a record, as it was read, has beside it."""
    return {part["name"] for part in record.get(_PLAN, {}).values()}


def _file_values(file: Mapping[str, Any]) -> dict[str, Any]:
    return {**file, "folder_values": orjson.dumps(file["folder_values"]).decode()}


def _partition_values(part: list[Any]) -> dict[str, Any]:
    file, start, stop, num_rows, *deleted = part
    values = list(deleted[0]) if deleted else []
    return {"file": file, "start": start, "stop": stop, "num_rows": num_rows, "deleted": values}


def _encode(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _decode(part: Mapping[str, Any], read: Callable[[str], bytes], schema: pa.Schema) -> list[dict[str, Any]]:
    data = read(part["name"])
    if _checksum(data) != part["checksum"]:
        raise ValueError(f"{part['name']} does not fit its checksum")
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).cast(schema).to_pylist()
    return rows


def _checksum(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"
