"""
The footer of a Parquet file as bytes: what Arrow does not carry from a file that it reads to one that it writes.

Arrow has no type for some logical types (INTERVAL, ENUM, TIME with a zone …) and would drop them. They are annotations
of a column's bytes, so they are copied as they stand. Knows the footer's encoding; knows nothing of rows.

Source: https://github.com/apache/parquet-format (``parquet.thrift``) and the Thrift compact protocol.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAGIC = b"PAR1"
EXTENSION_KEY = b"ARROW:extension:name"
HIDDEN_KEY = b"ARROW_extension:name"
"""Stands for `EXTENSION_KEY` while a job runs. Arrow makes no extension type of it: that may run code of the file's."""

_SCHEMA_KEY = b"ARROW:schema"
_TAIL_BYTES = 64 << 10
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
_TYPE, _TYPE_LENGTH, _NAME, _NUM_CHILDREN, _CONVERTED, _LOGICAL = 1, 2, 4, 5, 6, 10
_CARRIED = {_TYPE, _TYPE_LENGTH, _CONVERTED, _LOGICAL}
_LOST_LOGICAL = {4, 7, 12, 13, 14, 16, 17, 18}
"""ENUM, TIME, JSON, BSON, UUID, VARIANT, GEOMETRY, GEOGRAPHY."""
_LOST_CONVERTED = {4, 19, 20, 21}
"""ENUM, JSON, BSON, INTERVAL."""
_OLD_CONVERTED = {7, 8, 9, 10}
"""TIME and TIMESTAMP, in ms and µs. Without a logical type DuckDB and polars see no zone; Arrow would write one."""

Fields = dict[int, tuple[int, bytes]]
"""Of a Thrift struct: id → (wire type, the value's bytes)."""

Annotation = dict[int, bytes]
"""What is carried of a column: id of the field in ``SchemaElement`` → the value's bytes. Physical type included."""


class _Element(NamedTuple):
    """One element of the schema: the top-level column it is in, and its number in that column, from 0."""

    column: str
    number: int
    fields: Fields


def read_footer(raw: Any) -> bytes | None:
    """
    Return the footer of the Parquet file `raw`, open for reading; None where it is not a plain Parquet file.

    Raises:
        OSError: The file cannot be read.
    """
    size = raw.seek(0, 2)
    tail_start = max(0, size - _TAIL_BYTES)
    raw.seek(tail_start)
    tail = raw.read(size - tail_start)
    if len(tail) < 12 or tail[-4:] != MAGIC:
        return None
    num_bytes = int.from_bytes(tail[-8:-4], "little") + 8
    if num_bytes > size - 4:
        return None
    if num_bytes > len(tail):
        raw.seek(size - num_bytes)
        tail = raw.read(num_bytes)
    return bytes(tail[-num_bytes:-8])


def as_file(footer: bytes) -> bytes:
    """Return a Parquet file that consists of `footer` alone."""
    return MAGIC + footer + len(footer).to_bytes(4, "little") + MAGIC


def hide_extensions(footer: bytes) -> bytes:
    """Return `footer` with Arrow's extension types under a name that Arrow does not know; nothing moves."""
    place = footer.rfind(_SCHEMA_KEY)
    while place >= 0:
        start = place + len(_SCHEMA_KEY)
        if footer[start : start + 1] == b"\x18":  # the next field, a string
            num_bytes, value = _varint(footer, start + 1)
            text = footer[value : value + num_bytes]
            try:
                schema = base64.b64decode(text, validate=True)
            except binascii.Error:
                schema = b""
            if EXTENSION_KEY in schema:
                hidden = base64.b64encode(schema.replace(EXTENSION_KEY, HIDDEN_KEY))
                return footer[:value] + hidden + footer[value + num_bytes :]
        place = footer.rfind(_SCHEMA_KEY, 0, place)
    return footer


def lost_types(footer: bytes) -> dict[str, dict[int, Annotation]]:
    """Return the logical types that Arrow would drop: column → number of the schema element in it → annotation."""
    found: dict[str, dict[int, Annotation]] = {}
    for element in _elements(_schema_of(footer)[2]):
        logical, converted = element.fields.get(_LOGICAL), element.fields.get(_CONVERTED)
        is_lost = (logical is not None and next(_fields_of(logical[1], 0), (0,))[0] in _LOST_LOGICAL) or (
            converted is not None
            and _zigzag(converted[1]) in (_LOST_CONVERTED if logical is not None else _LOST_CONVERTED | _OLD_CONVERTED)
        )
        if is_lost:
            carried = {key: value for key, (_, value) in element.fields.items() if key in _CARRIED}
            found.setdefault(element.column, {})[element.number] = carried
    return found


def annotate(path: Path, wanted: dict[str, dict[int, Annotation]]) -> None:
    """
    Write annotations into the footer of a finished local file, where the columns are stored in the same way.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("r+b") as file:
        footer = read_footer(file)
        assert footer is not None
        start, stop, schema = _schema_of(footer)
        is_changed = False
        for element in _elements(schema):
            carried = wanted.get(element.column, {}).get(element.number)
            if carried is not None and all(_value(element.fields, key) == carried.get(key) for key in (1, 2)):
                is_changed = True
                for key, wire in ((_CONVERTED, 5), (_LOGICAL, _STRUCT)):
                    element.fields.pop(key, None)
                    if key in carried:
                        element.fields[key] = (wire, carried[key])
        if not is_changed:
            return
        new = footer[:start] + b"".join(_encode(fields) for fields in schema) + footer[stop:]
        file.seek(-len(footer) - 8, 2)
        file.truncate()
        file.write(as_file(new)[len(MAGIC) :])


def _value(fields: Fields, key: int) -> bytes | None:
    return fields[key][1] if key in fields else None


def _schema_of(footer: bytes) -> tuple[int, int, list[Fields]]:
    """Return where the schema's elements begin and end in the footer, and the elements."""
    place = 0
    for key, wire, start, stop in _fields_of(footer, 0):
        if key == 2 and wire == _LIST:
            num, place = _list_header(footer, start)
            first, elements = place, []
            for _ in range(num):
                fields: Fields = {}
                for inner, kind, low, high in _fields_of(footer, place):
                    fields[inner] = (kind, footer[low:high])
                    place = high
                place += 1
                elements.append(fields)
            return first, place, elements
        place = stop
    raise ValueError("a Parquet footer without a schema")


def _elements(schema: list[Fields]) -> Iterator[_Element]:
    """Number what may carry an annotation: a column's leaves, in an order that nesting keeps, and its top, as -1."""
    place = 1

    def below(column: str, counter: list[int], *, is_top: bool) -> Iterator[_Element]:
        nonlocal place
        fields = schema[place]
        place += 1
        num_children = _zigzag(fields[_NUM_CHILDREN][1]) if _NUM_CHILDREN in fields else 0
        if num_children == 0:
            yield _Element(column, counter[0], fields)
            counter[0] += 1
        elif is_top:
            yield _Element(column, -1, fields)
        for _ in range(num_children):
            yield from below(column, counter, is_top=False)

    while place < len(schema):
        num_bytes, start = _varint(schema[place][_NAME][1], 0)
        name = schema[place][_NAME][1][start : start + num_bytes].decode("utf-8", "replace")
        yield from below(name, [0], is_top=True)


def _encode(fields: Fields) -> bytes:
    parts, last = [], 0
    for key, (wire, value) in sorted(fields.items()):
        assert 0 < key - last < 16
        parts.append(bytes([(key - last) << 4 | wire]) + value)
        last = key
    return b"".join(parts) + bytes([_STOP])


def _fields_of(data: bytes, place: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (id, wire type, start, stop) for each field of the struct at `place`."""
    key = 0
    while data[place] != _STOP:
        delta, wire = data[place] >> 4, data[place] & 15
        place += 1
        if delta:
            key += delta
        else:
            value, place = _varint(data, place)
            key = (value >> 1) ^ -(value & 1)
        stop = _skip(data, place, wire)
        yield key, wire, place, stop
        place = stop


def _skip(data: bytes, place: int, wire: int) -> int:
    """Return where the value of a field ends."""
    if wire in (_TRUE, _FALSE):
        return place
    if wire == _BYTE:
        return place + 1
    if wire == _DOUBLE:
        return place + 8
    if wire == _BINARY:
        num, place = _varint(data, place)
        return place + num
    if wire == _STRUCT:
        for *_, stop in _fields_of(data, place):
            place = stop
        return place + 1
    if wire in (_LIST, _SET):
        kind = data[place] & 15
        num, place = _list_header(data, place)
        for _ in range(num):
            place = place + 1 if kind in (_TRUE, _FALSE) else _skip(data, place, kind)
        return place
    if wire == _MAP:
        raise ValueError("a Parquet footer has no maps")
    return _varint(data, place)[1]


def _list_header(data: bytes, place: int) -> tuple[int, int]:
    num = data[place] >> 4
    return (num, place + 1) if num < 15 else _varint(data, place + 1)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7


def _zigzag(data: bytes) -> int:
    value = _varint(data, 0)[0]
    return (value >> 1) ^ -(value & 1)
