"""
Tables in and out: pandas DataFrames and Arrow tables as rows, and the same table with more columns.

The input is never changed. Knows nothing of prompts or clients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from nemo_llm_stage.errors import InputError


def is_table(table: Any) -> bool:
    """Whether `table` is a pandas DataFrame, an Arrow table or a record batch: what the functions here take."""
    return isinstance(table, pa.Table | pa.RecordBatch) or (hasattr(table, "iloc") and hasattr(table, "columns"))


def column_names(table: Any) -> list[str]:
    """
    Return the table's column names.

    Raises:
        InputError: It is neither a pandas DataFrame nor an Arrow table or record batch.
    """
    if not is_table(table):
        raise InputError(f"process() takes a pandas DataFrame or a pyarrow Table, not {type(table).__name__}.")
    return list(table.schema.names) if _is_arrow(table) else [str(name) for name in table.columns]


def rows_of(table: Any, names: Iterable[str] | None) -> list[dict[str, Any]]:
    """
    Return the table's rows as dicts of plain Python values; every kind of null is None.

    Args:
        table: pandas DataFrame or Arrow table.
        names: The columns to take; None for all.

    Raises:
        InputError: A column name stands twice in the table.
    """
    available = column_names(table)
    wanted = list(names) if names is not None else available
    places = {name: place for place, name in enumerate(available)}
    if len(places) < len(available):
        for name, count in Counter(available).items():
            if count > 1 and name in wanted:
                raise InputError(f"the input has more than one column {name!r}; rename or drop all but one.")
    if not wanted:
        return [{} for _ in range(table.num_rows if _is_arrow(table) else len(table))]
    columns = [_values(table, places[name]) for name in wanted]
    return [dict(zip(wanted, values, strict=True)) for values in zip(*columns, strict=True)]


def with_columns(table: Any, fields: Sequence[pa.Field], arrays: Sequence[pa.Array]) -> Any:
    """
    Return `table` with the arrays as its last columns: the same rows in the same order, and the same kind of table.

    In a DataFrame the new columns have `pandas.ArrowDtype`, so that their type is the declared one even where all
    values are null; structs and lists are Python objects, as pandas cannot read a Parquet file with nested types of
    its own ("data type 'struct<…>[pyarrow]' not understood").
    """
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    if isinstance(table, pa.Table):
        schema = pa.schema([*table.schema, *fields], metadata=table.schema.metadata)
        return pa.table([*table.columns, *arrays], schema=schema)
    import pandas as pd

    copy = table.copy(deep=False)
    for field, array in zip(fields, arrays, strict=True):
        values = array.to_pylist() if pa.types.is_nested(field.type) else pd.arrays.ArrowExtensionArray(array)
        copy[field.name] = pd.Series(values, index=copy.index, dtype=object if isinstance(values, list) else None)
    return copy


def take_rows(table: Any, indices: Sequence[int]) -> Any:
    """Return the rows of `table` at `indices`, in that order and as often as they stand there."""
    return table.iloc[list(indices)] if hasattr(table, "iloc") else table.take(pa.array(indices, pa.int64()))


def _is_arrow(table: Any) -> bool:
    return isinstance(table, pa.Table | pa.RecordBatch)


def _values(table: Any, place: int) -> list[Any]:
    if _is_arrow(table):
        values: list[Any] = table.column(place).to_pylist()
        return values
    series = table.iloc[:, place]
    try:
        array = pa.array(series, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError):
        return [_plain(value) for value in series]  # mixed Python objects have no Arrow type
    return list(array.to_pylist())


def _plain(value: Any) -> Any:
    """A value of an object column as plain Python; every kind of missing scalar is None."""
    import pandas as pd

    if hasattr(value, "tolist"):
        return value.tolist()
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    return value
