"""
CSV and TSV as rows: whole records of a byte range, plain or compressed, with errors that name file and line.

The first record names the columns. Values may be quoted, and then hold line ends. An empty value is null, a quoted
empty one is an empty text. Knows bytes; types are for `csv_types` to find.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from nemo_llm_stage.dataset.bad_input import BadInput, OnBad, unreadable
from nemo_llm_stage.dataset.files import unpacked_name
from nemo_llm_stage.dataset.jsonl import line_number, open_unpacked
from nemo_llm_stage.errors import InputError

_BLOCK_BYTES = 4 << 20
_MAX_BLOCK_BYTES = 64 << 20
"""A block without a line end outside quotes grows up to here."""

_LINE_END, _RETURN = b"\n\r"
_RECORDS = {
    delimiter: re.compile(
        rb'(?:"(?:[^"]++|"")*+"[^D\n]*+|(?!")[^D\n]*+)(?:D(?:"(?:[^"]++|"")*+"[^D\n]*+|(?!")[^D\n]*+))*+\n'.replace(
            b"D", delimiter.encode()
        )
    )
    for delimiter in ",\t"
}
"""A record: a quote opens a value only at its start; elsewhere it is text."""

_ROW_NUMBER = re.compile(r"Row #(\d+)")
_MAX_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class Records:
    """
    Some records of a file.

    Attributes:
        starts: Offset of each record that is not blank, broken ones included.
        table: Those that are not broken.
    """

    starts: Sequence[int]
    table: pa.Table


@dataclass(frozen=True, slots=True)
class _Block:
    """Bytes of whole records, and where each of them starts; blank ones are left out."""

    offset: int
    data: bytes
    starts: Any

    def line(self, path: str, number: int) -> int:
        """Return the line of the file that the record `number`, counted from 1, begins at."""
        return line_number(path, self.offset + int(self.starts[min(number, len(self.starts)) - 1]))


def read_names(path: str) -> tuple[list[str], int]:
    """
    Return the names of the columns, and the offset of the first record after them.

    Raises:
        InputError: The file cannot be read, or is empty.
    """
    try:
        with open_unpacked(path) as file:
            return _read_names(path, file)
    except InputError:
        raise
    except Exception as error:  # a store's library may raise anything
        raise unreadable(path, error) from error


def read_records(
    path: str,
    start: int = 0,
    stop: int | None = None,
    *,
    types: Mapping[str, pa.DataType],
    on_bad: OnBad | None = None,
) -> Iterator[Records]:
    """
    Yield the records whose first byte lies in ``[start, stop)``, some MiB at a time.

    Args:
        path: A compressed file is read from its start; offsets are then those of the unpacked text.
        start: Where a record begins; 0 for the first one after the names.
        stop: Where a record begins; None for the file's end.
        types: Of the columns; text where there is none.
        on_bad: Told of broken records, which are left out; None makes them an error.

    Raises:
        InputError: The file cannot be read, a record is broken, or a value is not of its column's type.
    """
    try:
        with open_unpacked(path) as file:
            names, first = _read_names(path, file)
            offset = max(start, first)
            if start > first:
                file.seek(start)
            for block in _blocks(path, file, offset, stop):
                bad: list[tuple[int, str]] = []
                table = _parse(path, block, names, types, bad)
                for number, reason in bad:
                    record = BadInput(path, block.line(path, number), 1, reason)
                    if on_bad is None:
                        raise InputError(f"{path!r}, line {record.line}, {reason}")
                    on_bad(record)
                if table.num_rows + len(bad) != len(block.starts):
                    raise _unclear(path, block.offset)
                yield Records((block.starts + block.offset).tolist(), table)
    except InputError:
        raise
    except Exception as error:  # a store's library may raise anything
        raise unreadable(path, error) from error


def _read_names(path: str, file: Any) -> tuple[list[str], int]:
    """Return the names and where they end; the file stands there afterwards."""
    line = b""
    while more := file.readline():
        line += more
        if line.count(b'"') % 2 == 0 and not line.isspace():
            break
    if not line or line.isspace():
        raise InputError(f"{path!r} is empty; the first line of a CSV file names its columns.")
    options = pacsv.ParseOptions(delimiter=_delimiter(path), newlines_in_values=True)
    table = pacsv.read_csv(pa.BufferReader(line), pacsv.ReadOptions(use_threads=False), options)
    return table.schema.names, len(line)


def _blocks(path: str, file: Any, offset: int, stop: int | None) -> Iterator[_Block]:
    """Yield the records from where the file stands, at `offset`, in blocks."""
    rest = b""
    while True:
        begun = offset + len(rest)
        more = file.read(_BLOCK_BYTES if stop is None else max(0, min(_BLOCK_BYTES, stop - begun)))
        data = rest + more
        if not data:
            return
        found = _whole_records(path, offset, data, is_last=not more)
        if found is None:
            rest = data
            continue
        if len(found.starts):
            yield found
        rest = data[len(found.data) :]
        offset += len(found.data)


def _whole_records(path: str, offset: int, data: bytes, *, is_last: bool) -> _Block | None:
    """
    Return the whole records that `data` begins with; None where more must be read to tell.

    Raises:
        InputError: A quoted value has no end.
    """
    ends = _ends(data, _delimiter(path), is_last=is_last)
    if not len(ends) and not is_last and len(data) < _MAX_BLOCK_BYTES:
        return None
    if not len(ends) or (is_last and ends[-1] < len(data)):
        raise _unclear(path, offset + (int(ends[-1]) if len(ends) else 0))
    octets = np.frombuffer(data, np.uint8)
    starts = np.concatenate(([0], ends[:-1]))
    is_blank = (octets[starts] == _LINE_END) | ((octets[starts] == _RETURN) & (ends - starts == 2))
    return _Block(offset, data[: int(ends[-1])], starts[~is_blank])


def _ends(data: bytes, delimiter: str, *, is_last: bool) -> Any:
    """Return where each record ends, one past its line end; the last one of a file may have none."""
    size = len(data)
    if is_last and not data.endswith(b"\n"):
        data += b"\n"
    if b'"' not in data:
        return np.minimum(np.flatnonzero(np.frombuffer(data, np.uint8) == _LINE_END) + 1, size)
    ends: list[int] = []
    match, place = _RECORDS[delimiter].match, 0
    while found := match(data, place):
        place = found.end()
        ends.append(place)
    return np.minimum(np.array(ends, np.int64), size)


def _unclear(path: str, offset: int) -> InputError:
    return InputError(
        f"{path!r}, line {line_number(path, offset)} or after: where a record ends cannot be told. Within a quoted "
        "value a quote must be doubled, and lines must end with a line feed."
    )


def _parse(
    path: str,
    block: _Block,
    names: Sequence[str],
    types: Mapping[str, pa.DataType],
    bad: list[tuple[int, str]],
) -> pa.Table:
    """Return the records of a block as a table; broken ones go to `bad` instead, by their numbers from 1."""

    def note(row: Any) -> str:
        text = row.text if len(row.text) <= _MAX_SHOWN_CHARS else f"{row.text[:_MAX_SHOWN_CHARS]}…"
        bad.append((row.number, f"has {row.actual_columns} values for {row.expected_columns} columns: {text}"))
        return "skip"

    if not len(block.starts):
        return pa.table({name: pa.array([], types.get(name, pa.string())) for name in names})
    read = pacsv.ReadOptions(column_names=names, use_threads=False, block_size=len(block.data) + 1)
    parse = pacsv.ParseOptions(delimiter=_delimiter(path), newlines_in_values=True, invalid_row_handler=note)
    convert = pacsv.ConvertOptions(
        column_types={name: types.get(name, pa.string()) for name in names},
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
    )
    try:
        return pacsv.read_csv(pa.BufferReader(block.data), read, parse, convert)
    except pa.ArrowInvalid as error:
        number = _ROW_NUMBER.search(str(error))
        place = "" if number is None or bad else f", line {block.line(path, int(number[1]))}"
        raise InputError(f"cannot read {path!r}{place}: {error}.") from error


def _delimiter(path: str) -> str:
    return "\t" if unpacked_name(path).endswith(".tsv") else ","
