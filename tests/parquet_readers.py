"""How the libraries that people use see a Parquet file: what a column must look like the same way in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.dataset.arrow_values import exact_values

View = Any
Reader = Callable[[Path, Sequence[str]], View]

NOT_CARRIED = (b"nemo_llm_stage", b"org.apache.spark.sql.parquet.row.metadata")
"""Metadata of a file: what a job notes itself, and a list of columns by which Spark would not see new ones."""


def with_pyarrow(path: Path, columns: Sequence[str]) -> View:
    """Types, metadata of schema and columns, null flags, values."""
    table = pq.read_table(path).select(list(columns))
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if not key.startswith(NOT_CARRIED)}
    return [metadata, *map(_described, table.schema), *(repr(exact_values(column)) for column in table.columns)]


def _described(field: pa.Field) -> View:
    """All of a field but the names of lists' items, which Arrow changes."""
    inner = [_described(field.type.field(number)) for number in range(field.type.num_fields)]
    if not inner:
        return [field.name, str(field.type), field.nullable, field.metadata]
    if pa.types.is_list(field.type) or pa.types.is_large_list(field.type) or pa.types.is_fixed_size_list(field.type):
        inner[0][0] = "element"
    return [field.name, field.type.id, field.nullable, field.metadata, inner]


def with_pandas(path: Path, columns: Sequence[str]) -> View:
    """Dtypes, index and values."""
    import pandas as pd

    frame = pd.read_parquet(path)
    frame = frame[[name for name in columns if name in frame.columns]]
    categories = [str(kind.categories) for kind in frame.dtypes if isinstance(kind, pd.CategoricalDtype)]
    return [str(frame.dtypes), str(frame.index), categories, repr(frame.to_dict("list"))]


def with_polars(path: Path, columns: Sequence[str]) -> View:
    """Schema and values."""
    import polars as pl

    frame = pl.read_parquet(path, columns=list(columns))
    return [repr(frame.schema), *(repr(frame.get_column(name).to_list()) for name in columns)]


def with_duckdb(path: Path, columns: Sequence[str]) -> View:
    """Column types and values as text: some have no Python type."""
    import duckdb

    names = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
    with duckdb.connect() as connection:
        source = f"read_parquet('{path}', hive_partitioning=false)"
        types = connection.sql(f"describe select {names} from {source}").fetchall()
        rows = connection.sql(f"select cast(row({names}) as varchar) from {source}").fetchall()
    return [types, rows]


def with_datasets(path: Path, columns: Sequence[str]) -> View:
    """Features and values."""
    from datasets import Features
    from datasets.table import table_cast

    table = pq.read_table(path).select(list(columns))
    features = Features.from_arrow_schema(table.schema)
    return [repr(features), repr(table_cast(table, features.arrow_schema).to_pylist())]


READERS: dict[str, Reader] = {
    "pyarrow": with_pyarrow,
    "pandas": with_pandas,
    "polars": with_polars,
    "duckdb": with_duckdb,
    "datasets": with_datasets,
}


def view(reader: Reader, path: Path, columns: Sequence[str]) -> View:
    """Return what a reader sees, or the kind of its error: what it cannot read before, it need not after."""
    try:
        return reader(path, columns)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"fails with {type(error).__name__}"
