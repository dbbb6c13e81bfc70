"""
A look into one input file before a job: its columns, its rows, and where it can be cut.

Knows files and their formats; knows nothing of partitions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.dataset.arrow_file import ArrowFile
from nemo_llm_stage.dataset.bad_input import BadInput, is_damage, unreadable
from nemo_llm_stage.dataset.files import InputFile
from nemo_llm_stage.dataset.json_shape import Shape, merge_all
from nemo_llm_stage.dataset.json_types import JSON_TEXT_KEY, field_of
from nemo_llm_stage.dataset.jsonl import LineParser, is_read_whole, read_lines
from nemo_llm_stage.dataset.parquet_file import IN_MICROSECONDS, INT96_KEY, has_int96, schema_of
from nemo_llm_stage.dataset.prove import prove_writing
from nemo_llm_stage.dataset.scan import RANGE_BYTES, Scanned, ScanRange, scan_all
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.errors import InputError

SAMPLE_BYTES = 4 << 20
"""Of each JSONL file, what is looked at where not all of it is."""

OnMixedTypes = Literal["stop", "json"]
"""What a field of JSON whose values have no common type leads to: an error, or a column with each value's JSON."""


@dataclass(frozen=True, slots=True)
class Contents:
    """
    What a look into one file tells.

    Attributes:
        file: The file.
        schema: Its columns; of JSONL, those of all JSONL files, and of CSV likewise.
        num_rows: Estimated where `is_exact` is false.
        is_exact: Whether the rows were counted.
        blocks: Of a file of text, if all of it was looked at: where some lines begin, and the rows from each to the
            next.
        is_document: Whether its rows do not have a line each, so that it is read whole.
    """

    file: InputFile
    schema: pa.Schema
    num_rows: int
    is_exact: bool = True
    blocks: Sequence[tuple[int, int]] = ()
    is_document: bool = False


@dataclass(frozen=True, slots=True)
class LineOptions:
    """
    How JSONL is looked at.

    Attributes:
        is_sampled: Whether only the first `SAMPLE_BYTES` of each file are.
        stride: Rows from one block to the next.
        skips_bad: Whether broken lines, damaged files and values of another type are left out.
        on_mixed_types: See `OnMixedTypes`.
    """

    is_sampled: bool
    stride: int
    skips_bad: bool
    on_mixed_types: OnMixedTypes


OnDone = Callable[[int], None]
"""Told of a number of bytes that were looked at; from any thread."""


@dataclass
class _Chosen:
    """Decides what becomes of fields whose values have no common type, and remembers it."""

    files: Sequence[InputFile]
    options: LineOptions
    notices: list[str] = field(default_factory=list)

    def __call__(self, path: tuple[str, ...], shape: Shape) -> str:
        name, kinds = ".".join(path), sorted(shape.kinds, key=lambda kind: -shape.kinds[kind])
        if self.options.on_mixed_types == "json":
            self.notices.append(f"field {name!r} has values of several types ({', '.join(kinds)}): kept as JSON text.")
            return "json"
        if self.options.skips_bad:
            self.notices.append(f"field {name!r} has values of several types ({', '.join(kinds)}): {kinds[0]} is kept.")
            return kinds[0]
        places = " and ".join(_first_places(self.files, path, kinds))
        why = " (a double would round its integers)" if set(kinds) == {"integer", "number"} else ""
        raise InputError(
            f"the values of field {name!r} have no common type{why}: {places}. With on_mixed_types: json each value is "
            "kept as JSON text."
        )


def look_into_table(file: InputFile, *, skips_bad: bool) -> Contents | BadInput:
    """
    Return what a Parquet or Arrow file tells, or, if that may be skipped, that it is damaged.

    Raises:
        InputError: It cannot be read.
    """
    look = look_into_arrow if file.format == "arrow" else look_into_parquet
    return look(file, skips_bad=skips_bad)


def _needs_microseconds(raw: Any, metadata: pq.FileMetaData) -> bool:
    from nemo_llm_stage.dataset.int96 import needs_microseconds  # few files have such columns

    return needs_microseconds(raw, metadata)


def look_into_parquet(file: InputFile, *, skips_bad: bool) -> Contents | BadInput:
    """
    Return what the file's footer tells, or, if that may be skipped, that it is damaged.

    Raises:
        InputError: It cannot be read.
    """
    fs, path = open_filesystem(file.path)
    try:
        try:
            with fs.open(path, "rb") as raw:
                schema, parquet = schema_of(raw)
                metadata = parquet.metadata
                if has_int96(metadata) and _needs_microseconds(raw, metadata):
                    schema = schema_of(raw, **IN_MICROSECONDS)[0]
                    schema = schema.with_metadata({**(schema.metadata or {}), INT96_KEY: b""})
        except Exception as error:
            if not isinstance(error, OSError | pa.ArrowException):
                raise unreadable(file.path, error) from error
            advice = " A Parquet file that is still being written, or was cut off, has no footer."
            raise unreadable(file.path, error, advice) from error
        num_rows = sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        if num_rows != metadata.num_rows:
            damage = pa.ArrowInvalid(f"its footer says {metadata.num_rows} rows, its row groups say {num_rows}")
            raise unreadable(file.path, damage) from damage
    except InputError as error:
        return damaged(file, error, skips_bad=skips_bad)
    return Contents(file, schema, num_rows)


def look_into_arrow(file: InputFile, *, skips_bad: bool) -> Contents | BadInput:
    """
    Return what a file of Arrow's IPC format holds, or, if that may be skipped, that it is damaged.

    Raises:
        InputError: It cannot be read.
    """
    try:
        try:
            with contextlib.closing(ArrowFile(file.path)) as arrow:
                prove_writing(file.path, arrow.schema, arrow.batches(0))
                return Contents(file, arrow.schema, arrow.num_rows())
        except InputError:
            raise
        except Exception as error:  # a store's library may raise anything
            raise unreadable(file.path, error) from error
    except InputError as error:
        return damaged(file, error, skips_bad=skips_bad)


def look_into_lines(
    files: Sequence[InputFile], options: LineOptions, on_done: OnDone
) -> tuple[list[Contents | BadInput], list[str]]:
    """
    Return what JSONL files hold, with one schema for all, and what a person should know of it.

    Args:
        files: JSONL files.
        options: How.
        on_done: Told of bytes that were looked at.

    Raises:
        InputError: A file cannot be read, a line is broken, or a field's values have no common type.
    """
    ranges = [(file, wanted) for file in files for wanted in _ranges(file, options)]
    sizes = {file.path: bytes_looked_at(file, options) for file in files}
    found: dict[str, list[Scanned]] = {file.path: [] for file in files}
    broken: dict[str, BadInput] = {}

    def tell(wanted: ScanRange) -> None:
        on_done(min(wanted.stop or sizes[wanted.path], sizes[wanted.path]) - wanted.start)

    results = scan_all([wanted for _, wanted in ranges], sum(sizes.values()), tell)
    for (file, _), scanned in zip(ranges, results, strict=True):
        if isinstance(scanned, Scanned):
            found[file.path].append(scanned)
        else:
            broken[file.path] = damaged(file, scanned, skips_bad=options.skips_bad)
    whole = [file for file in files if file.path not in broken]
    shape = merge_all(scanned.shape for file in whole for scanned in found[file.path])
    choose = _Chosen(whole, options)
    schema = pa.schema([field_of(name, inner, choose) for name, inner in shape.fields.items()])
    notices = [*choose.notices, *_notices_of_maps(schema)]
    looks = [
        broken[file.path] if file.path in broken else _contents(file, schema, found[file.path], options)
        for file in files
    ]
    return looks, notices


def bytes_looked_at(file: InputFile, options: LineOptions) -> int:
    """Return how many bytes of a file are looked at."""
    return min(file.size, SAMPLE_BYTES) if options.is_sampled and file.format == "jsonl" else file.size


def damaged(file: InputFile, error: InputError, *, skips_bad: bool) -> BadInput:
    """Return that a file is damaged, if that is what `error` says and damaged files may be skipped; else raise it."""
    if not skips_bad or not is_damage(error.__cause__):
        raise error
    return BadInput(file.path, None, 0, str(error))


def _ranges(file: InputFile, options: LineOptions) -> Iterator[ScanRange]:
    if options.is_sampled or file.is_sequential:
        stop = SAMPLE_BYTES if options.is_sampled else None
        yield ScanRange(file.path, 0, stop, options.stride, options.skips_bad)
        return
    if file.size > RANGE_BYTES and is_read_whole(file.path):
        yield ScanRange(file.path, 0, None, options.stride, options.skips_bad)
        return
    for start in range(0, max(1, file.size), RANGE_BYTES):
        yield ScanRange(file.path, start, min(start + RANGE_BYTES, file.size), options.stride, options.skips_bad)


def _contents(file: InputFile, schema: pa.Schema, scanned: Sequence[Scanned], options: LineOptions) -> Contents:
    num_rows, end = sum(part.num_rows for part in scanned), scanned[-1].end
    if scanned[0].is_document:
        return Contents(file, schema, num_rows, is_document=True)
    if options.is_sampled and (file.is_sequential or end < file.size):
        bytes_per_row = max(1, end // max(1, num_rows))
        return Contents(file, schema, max(1, file.size // bytes_per_row), is_exact=False)
    blocks = [
        (offset, min(options.stride, part.num_rows - number * options.stride))
        for part in scanned
        for number, offset in enumerate(part.marks)
    ]
    return Contents(file, schema, num_rows, blocks=blocks)


def _notices_of_maps(schema: pa.Schema) -> Iterator[str]:
    def within(path: str, kind: pa.DataType) -> Iterator[str]:
        if pa.types.is_map(kind):
            yield f"field {path!r}: each row has keys of its own there, so it is a map and not a struct."
        for number in range(kind.num_fields):
            inner = kind.field(number)
            if JSON_TEXT_KEY not in (inner.metadata or {}):
                yield from within(f"{path}.{inner.name}", inner.type)

    for column in schema:
        if not (pa.types.is_map(column.type) and pa.types.is_null(column.type.item_type)):  # always empty
            yield from within(column.name, column.type)


def _first_places(files: Sequence[InputFile], path: Sequence[str], kinds: Sequence[str]) -> Iterator[str]:
    """Yield where the first value of each kind stands."""
    left = list(kinds)
    for file in files:
        parser = LineParser(file.path)
        for offset, row in parser.parse(read_lines(file.path), is_exact=True):
            for value in _values_at(row, path):
                shape = Shape()
                shape.add(value, 1)
                for kind in shape.kinds.keys() & set(left):
                    left.remove(kind)
                    yield f"{kind} in {file.path!r}, line {parser.line_number(offset)}"
            if not left:
                return


def _values_at(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """Yield the values of a field within `value`, by the names of the Arrow fields on the way."""
    if not path:
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _values_at(item, path[1:])
    elif isinstance(value, Mapping):
        if path[0] in value:
            yield from _values_at(value[path[0]], path[1:])
        elif path[0] == "value":  # of a map
            for item in value.values():
                yield from _values_at(item, path[1:])
