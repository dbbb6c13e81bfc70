"""
Arrow types for JSON: from the shape of all values to the fields of a schema, and each row's values in them.

Knows shapes and types; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from nemo_llm_stage.core import JSON_OBJECT_KEY
from nemo_llm_stage.dataset.arrow_types import map_field
from nemo_llm_stage.dataset.json_shape import MAX_DEPTH, MAX_FIELDS, Shape
from nemo_llm_stage.dataset.json_text import dump

JSON_TEXT_KEY = b"nemo_llm_stage:json_text"
"""Metadata of a text field while a job runs: its values are the JSON of what the input has there."""

_MAX_DOUBLE = 1 << 53
"""Integers up to here are exact in a double."""

_MAX_ROW_FIELDS = 1000
"""Rows with more fields are looked at one by one: each may have fields of its own."""

Path = tuple[str, ...]
Choose = Callable[[Path, Shape], str]
"""Says what becomes of a field whose values have no common type: one of its kinds, or ``json`` for their text."""


def field_of(name: str, shape: Shape, choose: Choose, path: Path = ()) -> pa.Field:
    """
    Return the field for values of `shape`; its type is null where there is no value.

    Args:
        name: The field's.
        shape: Of all its values.
        choose: Asked where the values have no common type; may raise.
        path: Of the field that it is in.
    """
    path = (*path, name)
    kind = _kind_of(shape)
    if kind is None:
        kind = choose(path, shape)
    if kind == "json":
        return pa.field(name, pa.string(), metadata={JSON_TEXT_KEY: b""})
    if kind == "list":
        item = field_of("item", shape.items or Shape(), choose, path)
        return pa.field(name, pa.list_(item), metadata=_mark_of_maps([item]))
    if kind == "object":
        return _object_field(name, shape, choose, path)
    if kind == "integer":
        return _integer_field(name, shape)
    return pa.field(name, {"": pa.null(), "bool": pa.bool_(), "number": pa.float64(), "string": pa.string()}[kind])


def declared_field(field: pa.Field) -> pa.Field:
    """Return `field` with a type at any depth: what was null in all lines becomes a string."""
    return map_field(field, lambda inner: inner.with_type(pa.string()) if pa.types.is_null(inner.type) else inner)


def shape_of_rows(rows: Sequence[Mapping[str, Any]]) -> Shape:
    """Return the shape of rows from `json_text.parse`: as Arrow finds it, or value by value where it finds none."""
    try:
        kind = pa.infer_type(rows)
        if not _may_be_map(kind, _MAX_ROW_FIELDS):
            array = pa.array(rows, kind)
            if not _has_bool_as_double(rows, kind):
                return _shape_of_array(array)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass  # values of several types, or large integers
    shape = Shape()
    for row in rows:
        shape.add(row)
    return shape


def converter(field: pa.Field) -> Callable[[Any], Any] | None:
    """Return what makes of a field's JSON value one that Arrow takes for the field; None where it takes it as it is."""
    if field.metadata and JSON_TEXT_KEY in field.metadata:
        return lambda value: None if value is None else dump(value)
    kind = field.type
    if pa.types.is_struct(kind):
        return _struct_converter(kind)
    if pa.types.is_map(kind):
        inner = converter(kind.item_field)
        if inner is None:
            return None
        return lambda value: {key: inner(item) for key, item in value.items()} if isinstance(value, dict) else value
    if pa.types.is_list(kind):
        of_item = converter(kind.value_field)
        if of_item is None:
            return None
        return lambda value: [of_item(item) for item in value] if isinstance(value, list) else value
    return None


def unknown_key(value: Any, kind: pa.DataType) -> str | None:
    """Return the first key of an object within `value` that `kind` has no field for; Arrow would drop it."""
    if isinstance(value, dict) and pa.types.is_struct(kind):
        for name, item in value.items():
            place = kind.get_field_index(name)
            found = name if place < 0 else unknown_key(item, kind.field(place).type)
            if found is not None:
                return found
    elif isinstance(value, dict) and pa.types.is_map(kind):
        return next(filter(None, (unknown_key(item, kind.item_type) for item in value.values())), None)
    elif isinstance(value, list) and pa.types.is_list(kind) and pa.types.is_nested(kind.value_type):
        return next(filter(None, (unknown_key(item, kind.value_type) for item in value)), None)
    return None


def _kind_of(shape: Shape) -> str | None:
    """Return the one kind that all values are of; None where there is none."""
    kinds = set(shape.kinds)
    if "deep" in kinds:
        return "json"
    if kinds == {"integer", "number"}:
        return "number" if shape.low >= -_MAX_DOUBLE and shape.high <= _MAX_DOUBLE else None
    if len(kinds) > 1:
        return None
    return kinds.pop() if kinds else ""


def _object_field(name: str, shape: Shape, choose: Choose, path: Path) -> pa.Field:
    if shape.values is not None or not shape.fields:  # Parquet has no struct without fields, but an empty map
        value = field_of("value", shape.values or Shape(), choose, path)
        return pa.field(name, pa.map_(pa.string(), value), metadata={JSON_OBJECT_KEY: b""})
    fields = [field_of(inner, item, choose, path) for inner, item in shape.fields.items()]
    return pa.field(name, pa.struct(fields), metadata=_mark_of_maps(fields))


def _mark_of_maps(fields: Sequence[pa.Field]) -> dict[bytes, bytes] | None:
    """Return the metadata of a field with `fields` in it: it has maps if one of them has."""
    return {JSON_OBJECT_KEY: b""} if any(JSON_OBJECT_KEY in (field.metadata or {}) for field in fields) else None


def _integer_field(name: str, shape: Shape) -> pa.Field:
    if shape.low >= -(1 << 63) and shape.high < 1 << 63:
        return pa.field(name, pa.int64())
    if shape.low >= 0 and shape.high < 1 << 64:
        return pa.field(name, pa.uint64())
    size = max(abs(shape.low), shape.high)
    if size < 10**38:
        return pa.field(name, pa.decimal128(38, 0))
    if size < 10**76:
        return pa.field(name, pa.decimal256(76, 0))
    return pa.field(name, pa.string(), metadata={JSON_TEXT_KEY: b""})


def _may_be_map(kind: pa.DataType, max_fields: int, depth: int = 0) -> bool:
    """Whether a type within `kind` must be looked at value by value: many fields, or too deep."""
    if pa.types.is_struct(kind):
        too_many = kind.num_fields > max_fields
        return too_many or any(_may_be_map(field.type, MAX_FIELDS, depth + 1) for field in kind)
    if pa.types.is_list(kind):
        return _may_be_map(kind.value_type, MAX_FIELDS, depth + 1)
    return depth > MAX_DEPTH


def _has_bool_as_double(values: Iterable[Any], kind: pa.DataType) -> bool:
    """Whether Arrow has taken a bool for a number, as it does among floats."""
    if pa.types.is_floating(kind):
        return any(type(value) is bool for value in values)
    if pa.types.is_struct(kind):
        return any(
            _has_bool_as_double([value.get(field.name) for value in values if value is not None], field.type)
            for field in kind
            if field.type.num_fields or pa.types.is_floating(field.type)
        )
    if pa.types.is_list(kind):
        return _has_bool_as_double([item for value in values if value is not None for item in value], kind.value_type)
    return False


def _shape_of_array(array: pa.Array) -> Shape:
    """Return the shape of values that Arrow has found to be of one type."""
    shape, kind, num = Shape(), array.type, len(array) - array.null_count
    if pa.types.is_null(kind) or not num:
        return shape
    if pa.types.is_struct(kind):
        shape.kinds["object"] = num
        shape.num_keys = num * kind.num_fields
        for place, field in enumerate(kind):
            shape.fields[field.name] = _shape_of_array(array.field(place))
    elif pa.types.is_list(kind):
        shape.kinds["list"] = num
        shape.items = _shape_of_array(array.flatten())
    elif pa.types.is_integer(kind):
        import pyarrow.compute as pc  # see arrow_values

        shape.kinds["integer"] = num
        ends = pc.min_max(array).as_py()
        shape.low, shape.high = min(0, ends["min"]), max(0, ends["max"])
    else:
        names = {pa.bool_(): "bool", pa.float64(): "number", pa.string(): "string"}
        shape.kinds[names[kind]] = num
    return shape


def _struct_converter(kind: pa.DataType) -> Callable[[Any], Any] | None:
    inner = {field.name: convert for field in kind if (convert := converter(field)) is not None}
    if not inner:
        return None

    def convert_fields(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {**value, **{name: convert(value[name]) for name, convert in inner.items() if name in value}}

    return convert_fields
