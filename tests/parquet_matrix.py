"""Parquet files of many writers with columns of every type they have, each with a column `text` to ask about."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.dataset.parquet_footer import annotate

TEXTS = ["a", "b", "c"]


def _write(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None, **options: Any) -> None:
    table = pa.table({**columns, "text": TEXTS})
    pq.write_table(table.replace_schema_metadata(metadata), path, **options)


def numbers(path: Path) -> None:
    """Of every width, at their limits."""
    kinds = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
    limits = {
        str(kind): pa.array(
            [0, 2 ** (kind.bit_width - 1) - 1, None]
            if pa.types.is_signed_integer(kind)
            else [0, 2**kind.bit_width - 1, None],
            kind,
        )
        for kind in kinds
    }
    floats = {str(kind): pa.array([1.5, float("nan"), float("-inf")], kind) for kind in (pa.float32(), pa.float64())}
    digits = decimal.Decimal("12345678901234567890.123456")
    _write(
        path,
        {
            **limits,
            **floats,
            "half": pa.array([1.5, None, 0.25], pa.float16()),
            "decimal": pa.array([digits, None, -digits], pa.decimal128(38, 6)),
            "decimal256": pa.array([digits, None, -digits], pa.decimal256(60, 6)),
            "small_decimal": pa.array([decimal.Decimal("1.10"), None, None], pa.decimal128(5, 2)),
            "bool": [True, None, False],
        },
    )


def times(path: Path) -> None:
    """Dates, times and durations in all units, with zones."""
    ns = [1_577_836_800_123_456_789, None, 0]
    _write(
        path,
        {
            "date32": pa.array([dt.date(2020, 2, 29), None, dt.date(1, 1, 1)]),
            "date64": pa.array([dt.date(2020, 2, 29), None, dt.date(1, 1, 1)], pa.date64()),
            "ms": pa.array([1_577_836_800_123, None, 0], pa.timestamp("ms")),
            "us": pa.array([1_577_836_800_123_456, None, 0], pa.timestamp("us")),
            "ns": pa.array(ns, pa.timestamp("ns")),
            "utc": pa.array(ns, pa.timestamp("ns", "UTC")),
            "berlin": pa.array([1_577_836_800_123, None, 0], pa.timestamp("ms", "Europe/Berlin")),
            "offset": pa.array([1_577_836_800_123, None, 0], pa.timestamp("ms", "+05:30")),
            "time_ms": pa.array([1, None, 86_399_999], pa.time32("ms")),
            "time_ns": pa.array([1, None, 86_399_999_999_999], pa.time64("ns")),
            "duration": pa.array([1, None, -1], pa.duration("us")),
        },
    )


def far_times(path: Path) -> None:
    """Beyond what Python's datetime holds."""
    _write(
        path,
        {
            "far": pa.array([253_402_300_800_000, -62_200_000_000_000, None], pa.timestamp("ms")),
            "far_date": pa.array([10_000_000, -10_000_000, None], pa.date32()),
            "far_duration": pa.array([2**62, None, -(2**62)], pa.duration("s")),
        },
    )


def texts(path: Path) -> None:
    """Text and bytes of every layout."""
    _write(
        path,
        {
            "large": pa.array(["ä", None, ""], pa.large_string()),
            "view": pa.array(["ä", None, ""], pa.string_view()),
            "binary": pa.array([b"\xff\x00", None, b""]),
            "binary_view": pa.array([b"\xff\x00", None, b""], pa.binary_view()),
            "fixed": pa.array([b"abc", None, b"def"], pa.binary(3)),
            "dictionary": pa.array(["x", None, "x"]).dictionary_encode(),
            "null": pa.nulls(3),
        },
    )


def nested(path: Path) -> None:
    """Lists, structs and maps in each other."""
    _write(
        path,
        {
            "list": pa.array([[1, None], None, []], pa.list_(pa.int32())),
            "large_list": pa.array([["a"], None, []], pa.large_list(pa.string())),
            "fixed": pa.array([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
            "struct": pa.array([{"a": 1, "b": {"c": ["x"]}}, None, {"a": None, "b": None}]),
            "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
            "deep": pa.array([[[[{"a": [1]}]]], None, [[]]]),
            "list_of_null": pa.array([[None], None, []], pa.list_(pa.null())),
        },
    )


def required_and_described(path: Path) -> None:
    """Columns that are not nullable, field ids as Iceberg has them, metadata of fields and of the file."""
    item = pa.field("element", pa.int64(), nullable=False, metadata={"PARQUET:field_id": "4"})
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False, metadata={"PARQUET:field_id": "1", "comment": "the key"}),
            pa.field("items", pa.list_(item), metadata={"PARQUET:field_id": "3"}),
            pa.field("text", pa.string(), nullable=False, metadata={"PARQUET:field_id": "2"}),
        ],
        metadata={"iceberg.schema": '{"schema-id": 0}', "owner": "me"},
    )
    pq.write_table(pa.table([[1, 2, 3], [[1], [], [2, 3]], TEXTS], schema=schema), path)


def extensions(path: Path) -> None:
    """Arrow's own extension types, one that only another program knows, and one within a list."""
    ids = pa.array([uuid.UUID(int=number).bytes for number in range(3)], pa.binary(16))
    tensor = pa.fixed_shape_tensor(pa.int32(), [2])
    unknown = {b"ARROW:extension:name": b"acme.point", b"ARROW:extension:metadata": b"v1"}
    columns = {
        "uuid": pa.ExtensionArray.from_storage(pa.uuid(), ids),
        "json": pa.array(['{"a": 1}', None, "[]"], pa.json_(pa.string())),
        "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0, 1, None], pa.int8())),
        "tensor": pa.ExtensionArray.from_storage(tensor, pa.array([[1, 2], [3, 4], [5, 6]], tensor.storage_type)),
        "unknown": pa.array([1, 2, 3]),
        "inside": pa.array([[1], [], None], pa.list_(pa.field("item", pa.int64(), metadata=unknown))),
        "text": pa.array(TEXTS),
    }
    fields = [pa.field(name, values.type) for name, values in columns.items()]
    fields[4] = fields[4].with_metadata(unknown)
    pq.write_table(pa.table(list(columns.values()), schema=pa.schema(fields)), path)


def pandas_frame(path: Path) -> None:
    """An index with a name, ordered categories that no row has, periods, intervals, zones, nullable integers."""
    import pandas as pd

    frame = pd.DataFrame(
        {
            "category": pd.Categorical(["b", "a", None], categories=["z", "b", "a"], ordered=True),
            "period": pd.period_range("2020-01", periods=3, freq="M"),
            "interval": pd.interval_range(0, 3),
            "zone": pd.date_range("2020-01-01", periods=3, tz="America/New_York"),
            "nullable": pd.array([1, None, 3], dtype="Int16"),
            "delta": pd.to_timedelta([1, 2, None], unit="s"),
            "text": TEXTS,
        },
        index=pd.Index(["x", "y", "z"], name="key"),
    )
    frame.to_parquet(path)


def polars_frame(path: Path) -> None:
    """Enum, categorical, arrays, durations and decimals."""
    import polars as pl

    frame = pl.DataFrame(
        {
            "enum": pl.Series(["a", "b", None], dtype=pl.Enum(["c", "b", "a"])),
            "categorical": pl.Series(["a", "b", "a"], dtype=pl.Categorical),
            "null": [None, None, None],
            "duration": pl.Series([1, 2, None], dtype=pl.Duration("ms")),
            "time": pl.Series([1, 2, None], dtype=pl.Time),
            "array": pl.Series([[1, 2], [3, 4], [5, 6]], dtype=pl.Array(pl.Int8, 2)),
            "decimal": pl.Series(["1.10", "2.20", None]).cast(pl.Decimal(10, 2)),
            "struct": [{"a": 1}, {"a": 2}, None],
            "text": TEXTS,
        }
    )
    frame.write_parquet(path)


def _duckdb(path: Path, columns: str) -> None:
    import duckdb

    query = f"select {columns}, text from (values ('a'), ('b'), ('c')) t(text)"
    with duckdb.connect() as connection:
        connection.sql(f"copy ({query}) to '{path}' (format parquet)")


def duckdb_types(path: Path) -> None:
    """UUID, JSON, TIMETZ and unsigned integers: logical types of Parquet."""
    _duckdb(
        path,
        "uuid '00000000-0000-0000-0000-000000000001' u, '{\"a\":1}'::json j, '12:00:00+02'::timetz z, 5::utinyint n,"
        " 'x'::enum('y', 'x') e, map{'a': 1} m, [uuid '00000000-0000-0000-0000-000000000002'] us, time '01:00:00' t,"
        " timestamptz '2020-01-01 00:00:00+00' ts, timestamp_ns '2020-01-01 00:00:00.123456789' ns, null nothing",
    )


def duckdb_interval(path: Path) -> None:
    """A logical type that Arrow has no type for."""
    _duckdb(path, "interval 3 month + interval 2 day + interval 1 second i, {'a': interval 1 day} s")


def hugging_face(path: Path) -> None:
    """Features with labels."""
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    features = Features(
        {
            "label": ClassLabel(names=["no", "yes"]),
            "scores": Sequence(Value("float32")),
            "text": Value("string"),
        }
    )
    rows = [{"label": number % 2, "scores": [0.5], "text": text} for number, text in enumerate(TEXTS)]
    Dataset.from_list(rows, features=features).to_parquet(str(path))


def old_writers(path: Path) -> None:
    """Lists as writers of old named them."""
    _write(
        path,
        {
            "list": pa.array([[1], None, []], pa.list_(pa.int32())),
        },
        use_compliant_nested_type=False,
        version="1.0",
        store_schema=False,
    )


def without_arrow_schema(path: Path) -> None:
    """As a writer that is not Arrow leaves it: nothing but Parquet's own types."""
    _write(path, {"n": pa.array([1, None, 3], pa.uint8()), "d": [dt.date(2020, 1, 1)] * 3}, store_schema=False)


def old_times(path: Path) -> None:
    """Times with the older annotation alone, at the top and in a struct, as many writers made them."""
    kinds = {"ms": pa.timestamp("ms"), "us": pa.timestamp("us"), "time": pa.time64("us")}
    table = pa.table({name: pa.array([1, None], kind) for name, kind in kinds.items()})
    table = table.append_column("text", pa.array(["a", "b"]))
    table = table.append_column("nested", pa.array([{"ms": 1}, None], pa.struct([("ms", pa.timestamp("ms"))])))
    pq.write_table(table, path, store_schema=False)
    converted = {"ms": 9, "us": 10, "time": 8, "nested": 9}
    int64 = bytes([2 << 1])
    annotate(path, {name: {0: {1: int64, 6: bytes([kind << 1])}} for name, kind in converted.items()})


MATRIX: list[Callable[[Path], None]] = [
    numbers,
    times,
    far_times,
    texts,
    nested,
    required_and_described,
    extensions,
    pandas_frame,
    polars_frame,
    duckdb_types,
    duckdb_interval,
    hugging_face,
    old_writers,
    without_arrow_schema,
    old_times,
]
