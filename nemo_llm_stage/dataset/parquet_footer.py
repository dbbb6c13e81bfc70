"""
The footer of a Parquet file as bytes: what Arrow does not carry from a file that it reads to one that it writes.

Arrow has no type for some logical types (INTERVAL, ENUM, TIME with a zone …) and would drop them. They are annotations
of a column's bytes, so they are copied as they stand. Knows the footer's encoding; knows nothing of rows.

Source: https://github.com/apache/parquet-format (``parquet.thrift``).
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nemo_llm_stage.dataset.thrift import (
    BINARY,
    LIST,
    STRUCT,
    Fields,
    encode,
    encode_text,
    fields_of,
    list_header,
    varint,
    zigzag,
)

MAGIC = b"PAR1"
EXTENSION_KEY = b"ARROW:extension:name"
HIDDEN_KEY = b"ARROW_extension:name"
"""Stands for `EXTENSION_KEY` while a job runs. Arrow makes no extension type of it: that may run code of the file's."""

_SCHEMA_KEY = b"ARROW:schema"
_TAIL_BYTES = 64 << 10
_TYPE, _TYPE_LENGTH, _NAME, _NUM_CHILDREN, _CONVERTED, _LOGICAL = 1, 2, 4, 5, 6, 10
_CARRIED = {_TYPE, _TYPE_LENGTH, _CONVERTED, _LOGICAL}
_LOST_LOGICAL = {4, 7, 12, 13, 14, 16, 17, 18}
"""ENUM, TIME, JSON, BSON, UUID, VARIANT, GEOMETRY, GEOGRAPHY."""
_WITH_CONVERTED = {1, 5, 6, 10}
"""STRING, DECIMAL, DATE, INTEGER. Arrow writes the older annotation too, without which DuckDB sees bytes for text."""
_LOST_CONVERTED = {4, 19, 20, 21}
"""ENUM, JSON, BSON, INTERVAL."""
_OLD_CONVERTED = {7, 8, 9, 10}
"""TIME and TIMESTAMP, in ms and µs. Without a logical type DuckDB and polars see no zone; Arrow would write one."""

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
            num_bytes, value = varint(footer, start + 1)
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


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names of columns as they are, but for those that came before: ``a, a, b`` → ``a, a_1, b``."""
    taken, seen, unique = set(names), set[str](), list[str]()
    for name in names:
        if name in seen:
            name = next(other for number in itertools.count(1) if (other := f"{name}_{number}") not in taken)
            taken.add(name)
        seen.add(name)
        unique.append(name)
    return unique


def names_of(footer: bytes) -> list[str]:
    """Return the names of the top-level columns."""
    schema = _schema_of(footer)[2]
    return [_name_of(schema[place]) for place in _tops(schema)]


def with_unique_names(footer: bytes) -> bytes:
    """Return `footer` with `unique_names` for its top-level columns."""
    start, stop, schema = _schema_of(footer)
    tops = _tops(schema)
    names = [_name_of(schema[place]) for place in tops]
    for place, name, unique in zip(tops, names, unique_names(names), strict=True):
        if unique != name:
            schema[place][_NAME] = (BINARY, encode_text(unique))
    return footer[:start] + b"".join(map(encode, schema)) + footer[stop:]


def lost_types(footer: bytes) -> dict[str, dict[int, Annotation]]:
    """Return the logical types that Arrow would drop: column → number of the schema element in it → annotation."""
    found: dict[str, dict[int, Annotation]] = {}
    for element in _elements(_schema_of(footer)[2]):
        if _is_lost(element.fields):
            carried = {key: value for key, (_, value) in element.fields.items() if key in _CARRIED}
            found.setdefault(element.column, {})[element.number] = carried
    return found


def _is_lost(fields: Fields) -> bool:
    """Whether Arrow writes other annotations than these of an element."""
    logical = next(fields_of(fields[_LOGICAL][1], 0), (0,))[0] if _LOGICAL in fields else None
    if _CONVERTED not in fields:
        return logical in _LOST_LOGICAL | _WITH_CONVERTED
    converted = zigzag(fields[_CONVERTED][1])
    return logical in _LOST_LOGICAL or converted in _LOST_CONVERTED or (logical is None and converted in _OLD_CONVERTED)


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
                for key, wire in ((_CONVERTED, 5), (_LOGICAL, STRUCT)):
                    element.fields.pop(key, None)
                    if key in carried:
                        element.fields[key] = (wire, carried[key])
        if not is_changed:
            return
        new = footer[:start] + b"".join(encode(fields) for fields in schema) + footer[stop:]
        file.seek(-len(footer) - 8, 2)
        file.truncate()
        file.write(as_file(new)[len(MAGIC) :])


def _value(fields: Fields, key: int) -> bytes | None:
    return fields[key][1] if key in fields else None


def _schema_of(footer: bytes) -> tuple[int, int, list[Fields]]:
    """Return where the schema's elements begin and end in the footer, and the elements."""
    place = 0
    for key, wire, start, stop in fields_of(footer, 0):
        if key == 2 and wire == LIST:
            num, place = list_header(footer, start)
            first, elements = place, []
            for _ in range(num):
                fields: Fields = {}
                for inner, kind, low, high in fields_of(footer, place):
                    fields[inner] = (kind, footer[low:high])
                    place = high
                place += 1
                elements.append(fields)
            return first, place, elements
        place = stop
    raise ValueError("a Parquet footer without a schema")


def _elements(schema: list[Fields]) -> Iterator[_Element]:
    """Number what may carry an annotation: a column's leaves, in an order that nesting keeps, and its top, as -1."""
    tops = _tops(schema)
    names = unique_names([_name_of(schema[place]) for place in tops])
    for name, (start, stop) in zip(names, itertools.pairwise([*tops, len(schema)]), strict=True):
        leaves = itertools.count()
        for place in range(start, stop):
            if not _num_children(schema[place]):
                yield _Element(name, next(leaves), schema[place])
            elif place == start:
                yield _Element(name, -1, schema[place])


def _tops(schema: list[Fields]) -> list[int]:
    """Return the places of the elements that top-level columns begin with."""
    tops, place = [], 1
    while place < len(schema):
        tops.append(place)
        num_left = 1
        while num_left:
            num_left += _num_children(schema[place]) - 1
            place += 1
    return tops


def _num_children(fields: Fields) -> int:
    return zigzag(fields[_NUM_CHILDREN][1]) if _NUM_CHILDREN in fields else 0


def _name_of(fields: Fields) -> str:
    num_bytes, start = varint(fields[_NAME][1], 0)
    return fields[_NAME][1][start : start + num_bytes].decode("utf-8", "replace")
