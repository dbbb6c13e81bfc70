"""
JSONL as rows: lines of a byte range, plain or compressed, with errors that name file and line.

Knows bytes and JSON; knows nothing of partitions' outputs.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import pyarrow as pa

from nemo_llm_stage.dataset.files import InputFile
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.errors import InputError

_BOM = b"\xef\xbb\xbf"
_BUFFER_BYTES = 1 << 20
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_MAX_SHOWN_CHARS = 80


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
    except (OSError, EOFError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path!r}: {error}.") from error


def parse_line(path: str, offset: int, line: bytes) -> dict[str, Any]:
    """
    Return the line's JSON object.

    Raises:
        InputError: It is not one; names the file and the line, counted from 1.
    """
    try:
        row = orjson.loads(line.removeprefix(_BOM) if offset == 0 else line)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{_place(path, offset)} is not JSON ({error}): {_shown(line)}") from error
    if not isinstance(row, dict):
        raise InputError(f"{_place(path, offset)} is not a JSON object: {_shown(line)}")
    return row


def to_table(path: str, lines: Sequence[tuple[int, bytes]], schema: pa.Schema) -> pa.Table:
    """
    Return the lines as a table of exactly `schema`; a field that a line lacks is null.

    Raises:
        InputError: A line is broken, has a field that `schema` lacks, or a value of another type.
    """
    rows = [parse_line(path, offset, line) for offset, line in lines]
    known = set(schema.names)
    for (offset, _), row in zip(lines, rows, strict=True):
        if not row.keys() <= known:
            name = next(name for name in row if name not in known)
            raise InputError(
                f"{_place(path, offset)} has a field {name!r} that the lines looked at first do not have. {_ADVICE}"
            )
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        for (offset, _), row in zip(lines, rows, strict=True):
            for field in schema:
                if not _fits(row.get(field.name), field.type):
                    raise InputError(
                        f"{_place(path, offset)}: field {field.name!r} is {_shown(orjson.dumps(row[field.name]))}, "
                        f"which is no {field.type} as in the lines looked at first. {_ADVICE}"
                    ) from error
        raise InputError(f"{path!r}: {error}") from error


def scan(file: InputFile, max_bytes: int | None = None) -> tuple[pa.Schema, list[int], int]:
    """
    Look at a file's lines and return (schema, offset of each line, end of the last one looked at).

    Args:
        file: A JSONL file.
        max_bytes: Stop after the line in which this many bytes are reached; None reads all.

    Raises:
        InputError: A line is broken, or a field has values of types that do not go together.
    """
    schema = pa.schema([])
    offsets: list[int] = []
    rows: list[dict[str, Any]] = []
    end = 0
    for offset, line in read_lines(file.path, 0, max_bytes):
        rows.append(parse_line(file.path, offset, line))
        offsets.append(offset)
        end = offset + len(line)
        if len(rows) == 4096:
            schema = _merge(file.path, schema, rows)
            rows = []
    return _merge(file.path, schema, rows), offsets, end


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


def declared(schema: pa.Schema) -> pa.Schema:
    """Return `schema` with a type for every field: one that was null in all lines becomes a string."""
    return pa.schema([pa.field(field.name, _without_null(field.type)) for field in schema])


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


def _place(path: str, offset: int) -> str:
    return f"{path!r}, line {_line_number(path, offset)},"


def _line_number(path: str, offset: int) -> int:
    """The number of the line that begins at `offset`, counted from 1. Reads the file up to there."""
    number, left = 1, offset
    with _open(path) as file:
        while left > 0:
            block = file.read(min(left, _BUFFER_BYTES))
            if not block:
                break
            number += block.count(b"\n")
            left -= len(block)
    return number


def _shown(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"
