"""
Rows of Arrow tables as lines of JSON that lose nothing which can be read back.

What JSON has no type for is text: times in ISO 8601 with all their digits, also beyond the year 9999, decimals as their
digits, bytes in Base64. NaN and infinities stand as Python's ``json`` writes and reads them; so does text that is not
UTF-8, with each foreign byte as a lone surrogate. Knows values; knows nothing of files.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from nemo_llm_stage.dataset.arrow_values import NO_PYTHON_VALUE, exact_values, is_list_like, lists
from nemo_llm_stage.dataset.jsonl import LINE

_NS_PER_S = 1_000_000_000


def to_lines(table: pa.Table) -> list[bytes]:
    """Return one JSON object for each row, without a line end."""
    names = table.schema.names
    rows = [dict(zip(names, values, strict=True)) for values in zip(*map(_column, table.columns), strict=True)]
    if any(has_special_floats(column) for column in table.columns):
        return [_dump_as_python(row) for row in rows]
    return [_dump(row) for row in rows]


def beside_lines(table: pa.Table) -> list[bytes]:
    """
    Return one JSON object for each row: its line as it was read, where it has one, with the columns after it added.

    Args:
        table: The input's columns, those lines as the column `LINE`, and other columns.
    """
    place = table.schema.get_field_index(LINE)
    if place < 0:
        return to_lines(table)
    names = table.schema.names
    before = table.column(place).to_pylist()
    if None in before:
        made = to_lines(table.select(names[:place]))
        before = [line or text for line, text in zip(before, made, strict=True)]
    return [joined(line, added) for line, added in zip(before, to_lines(table.select(names[place + 1 :])), strict=True)]


def joined(line: bytes, added: bytes) -> bytes:
    """Return the JSON object `line` with the fields of the JSON object `added` after its own."""
    start = opened(line)
    return start + added[1:] if start.endswith(b"{") else start + b"," + added[1:]


def opened(line: bytes) -> bytes:
    """Return the JSON object `line` without its closing brace: what `joined` begins with."""
    return line.rstrip()[:-1].rstrip()


def has_special_floats(array: pa.Array | pa.ChunkedArray) -> bool:
    """Whether there is NaN or an infinity in the array, at any depth; orjson would write null."""
    if isinstance(array, pa.ChunkedArray):
        return _may_hold(array.type, pa.types.is_floating) and any(map(has_special_floats, array.chunks))
    kind = array.type
    if pa.types.is_floating(kind):
        import pyarrow.compute as pc  # see arrow_values

        if pa.types.is_float16(kind):
            array = array.cast(pa.float32())
        return pc.all(pc.is_finite(array), min_count=0).as_py() is False
    if pa.types.is_dictionary(kind):
        return has_special_floats(array.dictionary)
    if pa.types.is_struct(kind):
        return any(has_special_floats(array.field(number)) for number in range(kind.num_fields))
    if pa.types.is_map(kind):
        return has_special_floats(array.keys) or has_special_floats(array.items)
    return is_list_like(kind) and has_special_floats(array.flatten())


def plain_json(value: Any) -> str:
    """Return what JSON has no type for as text; bytes as Base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value.isoformat() if hasattr(value, "isoformat") and not hasattr(value, "to_pytimedelta") else value)


def _dump(row: Any) -> bytes:
    try:
        return orjson.dumps(row, default=plain_json)
    except TypeError:  # a lone surrogate, or an integer of more than 64 bits
        return _dump_as_python(row)


def _dump_as_python(row: Any) -> bytes:
    return json.dumps(row, default=plain_json, separators=(",", ":")).encode()


def _column(column: pa.ChunkedArray) -> list[Any]:
    if not _may_hold(column.type, _needs_care):
        try:
            values: list[Any] = column.to_pylist()
        except NO_PYTHON_VALUE:
            pass  # one of them is beyond Python's types
        else:
            return values
    return [value for chunk in column.chunks for value in json_values(chunk)]


def _may_hold(kind: pa.DataType, test: Callable[[pa.DataType], bool]) -> bool:
    """Whether `kind` or a type within it passes `test`."""
    if pa.types.is_dictionary(kind):
        return _may_hold(kind.value_type, test)
    return bool(test(kind)) or any(_may_hold(kind.field(number).type, test) for number in range(kind.num_fields))


def _needs_care(kind: pa.DataType) -> bool:
    """Whether Python's type for it would drop digits."""
    return bool(pa.types.is_temporal(kind) and not pa.types.is_date(kind) and kind.unit == "ns")


def json_values(array: pa.Array) -> list[Any]:
    """Return for each value what `orjson` or `json` writes as it is."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return json_values(array.storage)
    if pa.types.is_dictionary(kind):
        return json_values(array.dictionary_decode())
    if pa.types.is_struct(kind):
        return _objects(array)
    if is_list_like(kind):
        return lists(array, _pairs if pa.types.is_map(kind) else json_values)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return [None if text is None else text.decode("utf-8", "surrogateescape") for text in exact_values(array)]
    if pa.types.is_timestamp(kind):
        return [_timestamp(scalar, kind) for scalar in array]
    if pa.types.is_date(kind):
        return [None if value is None else _date(value, kind) for value in exact_values(array)]
    if pa.types.is_time(kind):
        return [None if value is None else _time(value, kind.unit) for value in exact_values(array)]
    if pa.types.is_duration(kind):
        return [_duration(scalar, kind) for scalar in array]
    values: list[Any] = array.to_pylist()
    return values


def _objects(array: pa.Array) -> list[Any]:
    names = [field.name for field in array.type]
    columns = [json_values(array.field(number)) for number in range(len(names))]
    rows = zip(*columns, strict=True) if columns else ((),) * len(array)
    nulls = array.is_null().to_pylist()
    if len(set(names)) < len(names):  # an object would drop all fields of a name but one
        return [
            None if is_null else [list(pair) for pair in zip(names, row, strict=True)]
            for is_null, row in zip(nulls, rows, strict=True)
        ]
    return [None if is_null else dict(zip(names, row, strict=True)) for is_null, row in zip(nulls, rows, strict=True)]


def _pairs(array: pa.Array) -> list[Any]:
    keys, values = (json_values(array.field(number)) for number in range(2))
    return [list(pair) for pair in zip(keys, values, strict=True)]


def _timestamp(scalar: pa.Scalar, kind: pa.DataType) -> str | None:
    if not scalar.is_valid:
        return None
    try:
        return str(scalar.as_py().isoformat())
    except (ValueError, OverflowError, LookupError):
        text = str(np.datetime_as_string(np.datetime64(scalar.value, kind.unit)))
        return text if kind.tz is None else f"{text}+00:00"


def _date(value: int, kind: pa.DataType) -> str:
    day = np.datetime64(value, "D" if pa.types.is_date32(kind) else "ms")
    return str(np.datetime_as_string(day, unit="D"))


def _time(value: int, unit: str) -> str:
    num_digits = {"s": 0, "ms": 3, "us": 6, "ns": 9}[unit]
    seconds, rest = divmod(value, 10**num_digits)
    if rest and num_digits < 9:
        rest, num_digits = rest * 10 ** (6 - num_digits), 6
    elif rest and rest % 1000 == 0:
        rest, num_digits = rest // 1000, 6
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text}.{rest:0{num_digits}}" if rest else text


def _duration(scalar: pa.Scalar, kind: pa.DataType) -> str | None:
    if not scalar.is_valid:
        return None
    try:
        return str(scalar.as_py())
    except (ValueError, OverflowError):
        return f"{scalar.value} {kind.unit}"
