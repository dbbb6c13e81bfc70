"""
JSONL as rows: lines of a byte range, plain or compressed, with errors that name file and line.

Knows bytes and JSON; knows nothing of partitions' outputs.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson
import pyarrow as pa

from nemo_llm_stage.dataset.bad_input import BadInput, OnBad, unreadable
from nemo_llm_stage.dataset.files import InputFile
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.errors import InputError

_BOM = b"\xef\xbb\xbf"
_BUFFER_BYTES = 1 << 20
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_MAX_SHOWN_CHARS = 80
_LINES_PER_CHUNK = 4096


def read_lines(path: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """
    Yield (offset, line) for each line that is not blank and whose first byte lies in ``[start, stop)``.

    Args:
        path: A ``.gz`` or ``.zst`` file is read from its start whatever `start` says; offsets are then those of the
            unpacked text.
        start: Bytes.
        stop: Bytes; None for the file's end.

    Raises:
        InputError: The file cannot be read, or its compressed stream is broken.
    """
    try:
        with _open(path) as file:
            offset = 0
            if start > 0:
                file.seek(start - 1)
                offset = start - 1 + len(file.readline())
            while stop is None or offset < stop:
                line = file.readline()
                if not line:
                    return
                if not line.isspace():
                    yield offset, line
                offset += len(line)
    except Exception as error:  # a store's library may raise anything
        raise unreadable(path, error) from error


class LineParser:
    """
    Makes rows of one file's lines, and knows where a broken one stands.

    Args:
        path: The file.
        on_bad: Told of lines that are left out because they are broken; None makes them an error.
    """

    def __init__(self, path: str, on_bad: OnBad | None = None) -> None:
        self._path = path
        self._on_bad = on_bad
        self._known_place = (0, 1)

    def parse(self, lines: Iterable[tuple[int, bytes]]) -> list[dict[str, Any]]:
        """
        Return the JSON objects of the lines, each with the offset that `read_lines` gave it.

        Raises:
            InputError: A line is not one; names the file and the line, counted from 1.
        """
        return [row for _, row in self._parse(lines)]

    def to_table(self, lines: Sequence[tuple[int, bytes]], schema: pa.Schema) -> pa.Table:
        """
        Return the lines as a table of exactly `schema`; a field that a line lacks is null.

        Raises:
            InputError: A line is broken, has a field that `schema` lacks, or a value of another type.
        """
        rows = list(self._parse(lines))
        known = set(schema.names)
        if all(row.keys() <= known for _, row in rows):
            try:
                return pa.Table.from_pylist([row for _, row in rows], schema=schema)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                pass  # one of them does not fit; which one is found below
        fitting = []
        for offset, row in rows:
            reason = _misfit(row, schema)
            if reason is None:
                fitting.append(row)
            else:
                self._leave_out(offset, f"{reason} {_ADVICE}")
        return pa.Table.from_pylist(fitting, schema=schema)

    def _parse(self, lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, dict[str, Any]]]:
        for offset, line in lines:
            try:
                row = orjson.loads(line.removeprefix(_BOM) if offset == 0 else line)
            except orjson.JSONDecodeError as error:
                self._leave_out(offset, f"is not JSON ({error}): {_shown(line)}")
                continue
            if isinstance(row, dict):
                yield offset, row
            else:
                self._leave_out(offset, f"is not a JSON object: {_shown(line)}")

    def _leave_out(self, offset: int, reason: str) -> None:
        number = self._line_number(offset)
        if self._on_bad is None:
            raise InputError(f"{self._path!r}, line {number}, {reason}")
        self._on_bad(BadInput(self._path, number, 1, reason))

    def _line_number(self, offset: int) -> int:
        """The number of the line that begins at `offset`, counted from 1. Reads on from the last one asked for."""
        start, number = self._known_place if self._known_place[0] <= offset else (0, 1)
        with _open(self._path) as file:
            _skip(file, start)
            left = offset - start
            while left > 0 and (block := file.read(min(left, _BUFFER_BYTES))):
                number += block.count(b"\n")
                left -= len(block)
        self._known_place = (offset, number)
        return number


def scan(
    file: InputFile, max_bytes: int | None = None, on_bad: OnBad | None = None
) -> tuple[pa.Schema, list[int], int]:
    """
    Look at a file's lines and return (schema, offset of each line, end of the last one looked at).

    Args:
        file: A JSONL file.
        max_bytes: Stop after the line in which this many bytes are reached; None reads all.
        on_bad: See `LineParser`. Broken lines are in the offsets all the same.

    Raises:
        InputError: A line is broken, or a field has values of types that do not go together.
    """
    schema = pa.schema([])
    offsets: list[int] = []
    end = 0
    parser = LineParser(file.path, on_bad)
    lines = read_lines(file.path, 0, max_bytes)
    while chunk := list(itertools.islice(lines, _LINES_PER_CHUNK)):
        schema = _merge(file.path, schema, parser.parse(chunk))
        offsets.extend(offset for offset, _ in chunk)
        end = chunk[-1][0] + len(chunk[-1][1])
    return schema, offsets, end


def merge_schemas(path: str, left: pa.Schema, right: pa.Schema) -> pa.Schema:
    """
    Return the schema that holds both; integers widen to floats and a field missing on one side is null there.

    Raises:
        InputError: A field has types that do not go together.
    """
    try:
        return pa.unify_schemas([left, right], promote_options="permissive")
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"the input's files do not go together at {path!r}: {error}.") from error


def declared_field(field: pa.Field) -> pa.Field:
    """Return `field` with a type at any depth: what was null in all lines becomes a string."""
    return field.with_type(_without_null(field.type))


_ADVICE = "Run with `scan_input: full` to take the types from all lines, or mend the input."


def _merge(path: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Schema:
    if not rows:
        return schema
    try:
        struct = pa.array(rows).type
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        names = {name for row in rows for name in row}
        for name in sorted(names):
            try:
                pa.array([row.get(name) for row in rows])
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                raise InputError(f"{path!r}: the values of field {name!r} have no common type: {error}.") from error
        raise InputError(f"{path!r}: {error}.") from error
    return merge_schemas(path, schema, pa.schema(list(struct)))


def _without_null(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_null(kind.value_type))
    if pa.types.is_struct(kind):
        fields = [pa.field(field.name, _without_null(field.type)) for field in kind]
        return pa.struct(fields) if fields else pa.string()
    return kind


def _misfit(row: dict[str, Any], schema: pa.Schema) -> str | None:
    """Why `row` is no row of `schema`; None where it is one."""
    for name in row:
        if name not in schema.names:
            return f"has a field {name!r} that the lines looked at first do not have."
    for field in schema:
        if not _fits(row.get(field.name), field.type):
            shown = _shown(orjson.dumps(row[field.name]))
            return f"has {shown} in field {field.name!r}, which is no {field.type} as in the lines looked at first."
    return None


def _fits(value: Any, kind: pa.DataType) -> bool:
    try:
        pa.array([value], type=kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
    return True


def _open(path: str) -> Any:
    fs, inner = open_filesystem(path)
    file = fs.open(inner, "rb")
    for suffix, codec in _CODECS.items():
        if path.endswith(suffix):
            return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec), _BUFFER_BYTES)
    return file if isinstance(file, io.BufferedReader) else io.BufferedReader(file, _BUFFER_BYTES)


def _skip(file: Any, num_bytes: int) -> None:
    if file.seekable():
        file.seek(num_bytes)
        return
    while num_bytes > 0 and (block := file.read(min(num_bytes, _BUFFER_BYTES))):
        num_bytes -= len(block)


def _shown(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"
