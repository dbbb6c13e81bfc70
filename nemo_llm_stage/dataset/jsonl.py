"""
JSONL as rows: lines of a byte range, plain or compressed, with errors that name file and line.

Knows bytes and JSON; knows nothing of partitions' outputs.
"""

from __future__ import annotations

import contextlib
import io
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from nemo_llm_stage.dataset.arrow_types import conform
from nemo_llm_stage.dataset.bad_input import BadInput, OnBad, unreadable
from nemo_llm_stage.dataset.json_text import BOM, HEAD_BYTES, dump, is_document, is_row, parse, values
from nemo_llm_stage.dataset.json_types import JSON_TEXT_KEY, converter, unknown_key
from nemo_llm_stage.dataset.object_versions import without_version
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.errors import InputError

LINE = "\x00line"
"""Name of a column that holds each row's line as it stands in the file, for an output of lines."""

LINE_FIELD = pa.field(LINE, pa.large_binary())

_BUFFER_BYTES = HEAD_BYTES
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_MAX_SHOWN_CHARS = 80
_MISFITS = (pa.ArrowException, TypeError, ValueError, OverflowError)

_ADVICE = "Run with `scan_input: full` to take the types from all lines, or fix the input; then add --restart."


def read_lines(
    path: str, start: int = 0, stop: int | None = None, *, on_document: Callable[[], None] | None = None
) -> Iterator[tuple[int, bytes]]:
    """
    Yield (offset, line) for each line that is not blank and whose first byte lies in ``[start, stop)``.

    From the start of a file whose rows go over several lines, share one, or are in an array, all rows are yielded in
    place of lines.

    Args:
        path: A compressed file is read from its start whatever `start` says; offsets are then those of the unpacked
            text.
        start: Bytes.
        stop: Bytes; None for the file's end.
        on_document: Called first where rows are yielded in place of lines.

    Raises:
        InputError: The file cannot be read, its compressed stream is broken, or it is no JSON where it is read as rows.
    """
    try:
        with open_unpacked(path) as file:
            if start == 0:
                first = file.readline()
                if _is_document(path, first, file):
                    if on_document is not None:
                        on_document()
                    yield from _rows(path, first + file.read())
                    return
                if first.strip():
                    yield 0, first
                offset = len(first)
            else:
                file.seek(start - 1)
                offset = start - 1 + len(file.readline())
            while stop is None or offset < stop:
                line = file.readline()
                if not line:
                    return
                if not line.isspace():
                    yield offset, line
                offset += len(line)
    except InputError:
        raise
    except Exception as error:  # a store's library may raise anything
        raise unreadable(path, error) from error


def _rows(path: str, text: bytes) -> Iterator[tuple[int, bytes]]:
    try:
        yield from values(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path!r}, line {error.lineno}, is not JSON ({error.msg}).") from pa.ArrowInvalid(error.msg)
    except UnicodeDecodeError as error:
        number = text.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path!r}, line {number}, {_foreign(error)}.") from pa.ArrowInvalid(error.reason)


def is_read_whole(path: str) -> bool:
    """Whether `read_lines` yields rows in place of the lines of a file; not where it cannot be read."""
    with contextlib.suppress(Exception), open_unpacked(path) as file:  # who reads it tells why
        return _is_document(path, file.readline(), file)
    return False


class LineParser:
    """
    Makes rows of one file's lines, and knows where a broken one stands.

    Args:
        path: The file.
        on_bad: Told of lines that are left out because they are broken; None makes them an error.
        is_sampled: Whether the schema comes from a part of the lines, so that others may have more fields.
    """

    def __init__(self, path: str, on_bad: OnBad | None = None, *, is_sampled: bool = True) -> None:
        self._path = path
        self._on_bad = on_bad
        self._is_sampled = is_sampled
        self._known_place = (0, 1)

    def parse(self, lines: Iterable[tuple[int, bytes]], *, is_exact: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        """
        Yield the offset and the JSON object of each line, which has the offset that `read_lines` gave it.

        Args:
            lines: From `read_lines`.
            is_exact: See `json_text.parse`.

        Raises:
            InputError: A line is broken; names the file and the line, counted from 1.
        """
        for offset, line in lines:
            try:
                row = parse(line.removeprefix(BOM) if offset == 0 else line, is_exact=is_exact)
            except UnicodeDecodeError as error:
                self._leave_out(offset, f"{_foreign(error)}: {_shown(line)}")
                continue
            except ValueError as error:
                self._leave_out(offset, f"is not JSON ({error}): {_shown(line)}")
                continue
            if isinstance(row, dict):
                yield offset, row
            else:
                self._leave_out(offset, f"is not a JSON object: {_shown(line)}")

    def to_table(self, lines: Sequence[tuple[int, bytes]], schema: pa.Schema) -> pa.Table:
        """
        Return the lines as a table of exactly `schema`; a field that a line lacks is null.

        Args:
            lines: From `read_lines`.
            schema: Of the rows; a column `LINE` gets the lines themselves.

        Raises:
            InputError: A line is broken, has a field that `schema` lacks, or a value of another type.
        """
        fields = pa.schema([field for field in schema if field.name != LINE])
        converters = _converters_of(fields)
        rows = [
            (offset, {**row, **{name: convert(row[name]) for name, convert in converters.items() if name in row}})
            if converters
            else (offset, row)
            for offset, row in self.parse(lines, is_exact=_needs_digits(fields))
        ]
        table = _table(rows, fields) if self._have_known_fields([row for _, row in rows], fields) else None
        if table is None:
            rows = [(offset, row) for offset, row in rows if self._fits(offset, row, fields)]
            table = _table(rows, fields)
        assert table is not None
        if LINE in schema.names:
            texts = dict(lines)
            kept = [texts[offset].strip().removeprefix(BOM) for offset, _ in rows]
            table = table.append_column(LINE_FIELD, pa.array(kept, LINE_FIELD.type))
        return conform(table, schema)

    def line_number(self, offset: int) -> int:
        """Return the number of the line that begins at `offset`, counted from 1. Reads on from the last one."""
        known = self._known_place if self._known_place[0] <= offset else (0, 1)
        number = line_number(self._path, offset, known)
        self._known_place = (offset, number)
        return number

    def _have_known_fields(self, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> bool:
        if self._is_sampled:
            return all(_first_unknown(row, schema) is None for row in rows)
        names = set(schema.names)
        return all(row.keys() <= names for row in rows)

    def _fits(self, offset: int, row: dict[str, Any], schema: pa.Schema) -> bool:
        """Whether the row at `offset` fits; one that does not is left out."""
        reason = _misfit(row, schema)
        if reason is not None:
            self._leave_out(offset, f"{reason} {_ADVICE}" if self._is_sampled else reason)
        return reason is None

    def _leave_out(self, offset: int, reason: str) -> None:
        number = self.line_number(offset)
        if self._on_bad is None:
            raise InputError(f"{self._path!r}, line {number}, {reason}")
        self._on_bad(BadInput(self._path, number, 1, reason))


def line_number(path: str, offset: int, known: tuple[int, int] = (0, 1)) -> int:
    """Return the number of the line that begins at `offset`, from 1; reads on from a `known` offset and line."""
    start, number = known
    with open_unpacked(path) as file:
        _skip(file, start)
        left = offset - start
        while left > 0 and (block := file.read(min(left, _BUFFER_BYTES))):
            number += block.count(b"\n")
            left -= len(block)
    return number


def _converters_of(schema: pa.Schema) -> dict[str, Callable[[Any], Any]]:
    return {field.name: convert for field in schema if (convert := converter(field)) is not None}


def _needs_digits(schema: pa.Schema) -> bool:
    """Whether integers of any length matter: where they are kept, and where a float would swallow their digits."""

    def needs(field: pa.Field) -> bool:
        kind = field.type
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or JSON_TEXT_KEY in (field.metadata or {}):
            return True
        return any(needs(kind.field(number)) for number in range(kind.num_fields))

    return any(map(needs, schema))


def _table(rows: Sequence[tuple[int, dict[str, Any]]], schema: pa.Schema) -> pa.Table | None:
    """Return the rows as a table; None where one of them does not fit."""
    if not len(schema):  # rows of dicts without keys would be no rows
        return pa.Table.from_struct_array(pa.array([{} for _ in rows], pa.struct([])))
    try:
        return pa.Table.from_pylist([row for _, row in rows], schema=schema)
    except _MISFITS:
        return None


def _first_unknown(row: dict[str, Any], schema: pa.Schema) -> str | None:
    for name, value in row.items():
        place = schema.get_field_index(name)
        if place < 0:
            return name
        kind = schema.field(place).type
        if kind.num_fields and (inner := unknown_key(value, kind)) is not None:
            return f"{name}.{inner}"
    return None


def _misfit(row: dict[str, Any], schema: pa.Schema) -> str | None:
    """Why `row` is no row of `schema`; None where it is one."""
    unknown = _first_unknown(row, schema)
    if unknown is not None:
        return f"has a field {unknown!r} that the lines looked at first do not have."
    for field in schema:
        try:
            pa.array([row.get(field.name)], type=field.type)
        except _MISFITS:
            shown = _shown(dump(row[field.name]).encode(errors="replace"))
            return f"has {shown} in field {field.name!r}, which is no {field.type} as in the lines looked at first."
    return None


def open_unpacked(path: str) -> Any:
    """Return the file at `path`, open for reading, without its compression; raises what a store's library raises."""
    fs, inner = open_filesystem(path)
    file = fs.open(inner, "rb")
    lowered = without_version(path).lower()
    if lowered.endswith(".xz"):
        return io.BufferedReader(lzma.open(file), _BUFFER_BYTES)
    for suffix, codec in _CODECS.items():
        if lowered.endswith(suffix):
            return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec), _BUFFER_BYTES)
    return file if isinstance(file, io.BufferedReader) else io.BufferedReader(file, _BUFFER_BYTES)


def _is_document(path: str, first: bytes, file: Any) -> bool:
    """Whether a file, open after its first line, has not a row on each line; one called ``.json`` more likely so."""
    if is_row(first):
        return False
    is_likely = ".json" in Path(without_version(path).lower()).suffixes
    return is_document(first + file.peek(_BUFFER_BYTES), is_likely=is_likely)


def _skip(file: Any, num_bytes: int) -> None:
    if file.seekable():
        file.seek(num_bytes)
        return
    while num_bytes > 0 and (block := file.read(min(num_bytes, _BUFFER_BYTES))):
        num_bytes -= len(block)


def _foreign(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8 ({error.reason}), which JSON must be; `iconv -f ENCODING -t UTF-8` converts it"


def _shown(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"
