"""
Tables in and out: pandas DataFrames and Arrow tables as rows, and the same table with more columns.

The input is never changed. Knows nothing of prompts or clients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from nemo_llm_stage.core import JSON_OBJECT_KEY
from nemo_llm_stage.errors import InputError, PromptError
from nemo_llm_stage.text import encodable

_NO_PYTHON_VALUE = (pa.ArrowException, ValueError, OverflowError, TypeError, LookupError)
"""Raised by Arrow for a value without a Python form, e.g. a date beyond the year 9999, or an unknown time zone."""


class _Unreadable(NamedTuple):
    """Stands for a value that has no Python form."""

    reason: str


class PartialRow(Mapping[str, Any]):
    """A row with values that have no Python form: reading one raises `PromptError`, so that only this row fails."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        if isinstance(value, _Unreadable):
            raise PromptError(f"column {name!r} cannot be read: {value.reason}")
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


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


def rows_of(table: Any, names: Iterable[str] | None) -> list[Mapping[str, Any]]:
    """
    Return the table's rows as dicts of plain Python values; every kind of null is None.

    A row with a value that has no Python form is a `PartialRow`.

    Args:
        table: pandas DataFrame or Arrow table.
        names: The columns to take; None for all.

    Raises:
        InputError: The table has two columns of the same name.
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
    partial: set[int] = set()
    columns = [_values(table, places[name], partial) for name in wanted]
    rows: list[Mapping[str, Any]] = [dict(zip(wanted, values, strict=True)) for values in zip(*columns, strict=True)]
    for index in partial:
        rows[index] = PartialRow(rows[index])
    return rows


def with_columns(table: Any, fields: Sequence[pa.Field], arrays: Sequence[pa.Array]) -> Any:
    """
    Return `table` with the arrays as its last columns: the same rows in the same order, and the same kind of table.

    In a DataFrame the new columns have `pandas.ArrowDtype`: the type is the declared one even if all values are null.
    Structs and lists are Python objects, because pandas cannot read a Parquet file with its own nested types ("data
    type 'struct<…>[pyarrow]' not understood").
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


def without_columns(table: Any, names: Iterable[str]) -> Any:
    """Return the table without the columns of these names, as far as it has them."""
    present = [name for name in names if name in column_names(table)]
    if not present:
        return table
    return table.drop_columns(present) if _is_arrow(table) else table.drop(columns=present)


def take_rows(table: Any, indices: Sequence[int]) -> Any:
    """Return the rows of `table` at `indices`, in that order; an index may occur more than once."""
    return table.iloc[list(indices)] if hasattr(table, "iloc") else table.take(pa.array(indices, pa.int64()))


def _is_arrow(table: Any) -> bool:
    return isinstance(table, pa.Table | pa.RecordBatch)


def _values(table: Any, place: int, partial: set[int]) -> list[Any]:
    """Return a column's values; add the indices of those without a Python form to `partial`."""
    if _is_arrow(table):
        is_json = JSON_OBJECT_KEY in (table.schema.field(place).metadata or {})
        return _to_python(table.column(place), partial, maps="lossy" if is_json else None)
    series = table.iloc[:, place]
    try:
        array = pa.array(series, from_pandas=True)
    except _NO_PYTHON_VALUE:
        values = [_plain(value) for value in series]  # mixed Python objects have no Arrow type
        partial.update(index for index, value in enumerate(values) if isinstance(value, _Unreadable))
        return values
    return _to_python(array, partial)


def _to_python(array: pa.Array | pa.ChunkedArray, partial: set[int], maps: str | None = None) -> list[Any]:
    """Return plain values; `maps` is Arrow's ``maps_as_pydicts``. Add the indices of those without any to `partial`."""
    try:
        values: list[Any] = array.to_pylist(maps_as_pydicts=maps)
    except _NO_PYTHON_VALUE:
        values = [_scalar_to_python(scalar, maps) for scalar in array]
        partial.update(index for index, value in enumerate(values) if isinstance(value, _Unreadable))
    return values


def _scalar_to_python(scalar: pa.Scalar, maps: str | None) -> Any:
    try:
        return scalar.as_py(maps_as_pydicts=maps)
    except _NO_PYTHON_VALUE as error:
        return _Unreadable(f"{type(error).__name__}: {error}")


def _plain(value: Any) -> Any:
    """A value of an object column as plain Python; every kind of missing scalar is None."""
    import pandas as pd

    if isinstance(value, str):
        return value if encodable(value) == value else _Unreadable("it holds half a surrogate pair, which no UTF-8 has")
    if hasattr(value, "tolist"):
        return value.tolist()
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    return value
