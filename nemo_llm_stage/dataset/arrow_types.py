"""
Arrow types, and tables of a schema.

Knows types; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

FieldChange = Callable[[pa.Field], pa.Field]


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """
    Return `table` with exactly the columns of `schema`; one that it lacks is null.

    A column that has its type already is not cast: Arrow's cast breaks slices of lists that have nulls in structs.

    Raises:
        pyarrow.ArrowException: A value does not fit its type.
    """
    if not len(schema):  # no column would keep the number of rows
        return pa.Table.from_batches([with_schema(batch.select([]), schema) for batch in table.to_batches()], schema)
    if table.schema.equals(schema, check_metadata=True):
        return table
    arrays = []
    names = table.schema.names  # a new list each time
    places = {name: place for place, name in enumerate(names)}
    for field in schema:
        if field.name not in places:
            arrays.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name if len(places) < len(names) else places[field.name])
        arrays.append(column if column.type == field.type else column.cast(field.type))
    return pa.table(arrays, schema=schema)


class _Retyped:
    """An array, or a record batch, seen as one of another type of the same layout."""

    def __init__(self, data: Any, kind: pa.DataType | pa.Schema) -> None:
        self._data = data
        self._kind = kind

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return self._kind.__arrow_c_schema__(), self._data.__arrow_c_array__()[1]


def retyped(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return `array` as one of a type whose values lie in memory in the same way; nothing is checked or copied."""
    return pa.array(_Retyped(array, kind))


def with_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return `batch` with types and metadata of `schema`, whose values lie in memory in the same way."""
    return pa.record_batch(_Retyped(batch, schema))


def map_fields(schema: pa.Schema, change: FieldChange) -> pa.Schema:
    """Return `schema` with `change` applied to each of its fields and to the fields within their types."""
    return pa.schema([map_field(field, change) for field in schema], metadata=schema.metadata)


def map_field(field: pa.Field, change: FieldChange) -> pa.Field:
    """Return `field` with `change` applied to the fields within its type, and then to itself."""
    kind = field.type
    children = [kind.field(number) for number in range(kind.num_fields)]
    changed = [map_field(child, change) for child in children]
    if any(not new.equals(old, check_metadata=True) for new, old in zip(changed, children, strict=True)):
        field = field.with_type(with_children(kind, changed))
    return change(field)


def with_children(kind: pa.DataType, children: list[pa.Field]) -> pa.DataType:
    """
    Return the nested type `kind` with other fields in it.

    Raises:
        pyarrow.ArrowNotImplementedError: It is a type that Parquet and JSON have none of, e.g. a union.
    """
    if pa.types.is_struct(kind):
        return pa.struct(children)
    if pa.types.is_map(kind):
        pair = children[0].type if len(children) == 1 else pa.struct(children)
        return pa.map_(pair.field(0), pair.field(1), keys_sorted=kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(children[0], kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(children[0])
    if pa.types.is_list(kind):
        return pa.list_(children[0])
    if pa.types.is_list_view(kind):
        return pa.list_view(children[0])
    if pa.types.is_large_list_view(kind):
        return pa.large_list_view(children[0])
    raise pa.ArrowNotImplementedError(f"a type with fields in it that is not known here: {kind}")
