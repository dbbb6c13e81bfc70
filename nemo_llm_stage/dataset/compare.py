"""
Sets the rows of a committed file beside those of its input.

What was read is read again, and Parquet by other readers than the job's: the dear proof, after the cheap one of
`verify`. Knows partitions and outputs.
"""

from __future__ import annotations

import base64
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson
import pyarrow as pa

from nemo_llm_stage.dataset.arrow_values import exact_values
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.json_lines import opened, to_lines
from nemo_llm_stage.dataset.json_text import parse
from nemo_llm_stage.dataset.jsonl import LINE, LINE_FIELD
from nemo_llm_stage.dataset.other_readers import NotReadError, can_use_duckdb, read_otherwise, rows_in_duckdb
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.read import read_partition

ROWS_PER_CHUNK = 1024


def first_misplaced(
    output: OutputFolder, name: str, partition: Partition, schema: pa.Schema, *, repeats: bool
) -> int | None:
    """
    Return the first row of the file, from 0, that is no row of its input or not in its place; None where all are.

    Rows of the input may be missing from the file, which counts tell of; those that are there must come in its order.

    Args:
        output: The folder.
        name: The file's.
        partition: Its input.
        schema: Of the input.
        repeats: Whether a row may come several times in succession: once for each of its answers.

    Raises:
        InputError: The input cannot be read.
        OSError: The file cannot; also ValueError and `pyarrow.ArrowException`.
    """
    if output.format == "jsonl":
        inputs: Iterator[Any] = _input_lines(partition, schema)
        outputs: Iterator[Any] = (line for _, line in output.lines(name))
        is_same: Callable[[Any, Any], bool] = _is_same_line
    else:
        inputs = _input_rows(partition, schema)
        outputs = _output_rows(output, name, schema)
        is_same = _is_same_row
    return _first_misplaced(inputs, outputs, is_same, repeats=repeats)


def first_misplaced_in_duckdb(
    output: OutputFolder, name: str, partition: Partition, schema: pa.Schema, *, repeats: bool
) -> int | None:
    """Return what `first_misplaced` does, by DuckDB; None also where it is not installed or does not read the files."""
    if output.format != "parquet" or not can_use_duckdb(partition, output.folder.fs, schema):
        return None
    try:
        rows = rows_in_duckdb(partition, output.folder.path(name), schema.names)
        return _first_misplaced(*rows, operator.eq, repeats=repeats)
    except NotReadError:
        return None


def _first_misplaced(
    inputs: Iterator[Any], outputs: Iterator[Any], is_same: Callable[[Any, Any], bool], *, repeats: bool
) -> int | None:
    before = None
    for number, row in enumerate(outputs):
        if repeats and before is not None and is_same(before, row):
            continue
        before = next((given for given in inputs if is_same(given, row)), None)  # goes on where it stopped
        if before is None:
            return number
    return None


class _Line:
    """A row of the input as it should begin its line, and, for files of earlier versions, as its types make it."""

    def __init__(self, text: bytes, names: Sequence[str], values: Sequence[Any]) -> None:
        self.start = opened(text)
        self._names = names
        self._values = values

    def has_values_of(self, line: bytes) -> bool:
        row = parse(line)
        return _dumped([row.get(name) for name in self._names]) == _dumped(self._values)


def _is_same_line(given: _Line, line: bytes) -> bool:
    rest = line.removeprefix(given.start)
    is_start = len(rest) < len(line) and (rest.startswith(b",") or given.start.endswith(b"{"))
    return is_start or given.has_values_of(line)


def _is_same_row(given: tuple[Any, ...], row: tuple[Any, ...]) -> bool:
    return given == row


def _input_rows(partition: Partition, schema: pa.Schema) -> Iterator[tuple[Any, ...]]:
    for table in _input_tables(partition, schema):
        yield from _exact_rows(table)


def _input_tables(partition: Partition, schema: pa.Schema) -> Iterator[pa.Table]:
    if partition.format == "parquet":
        return read_otherwise(partition, schema)
    return read_partition(partition, schema, rows_per_chunk=ROWS_PER_CHUNK, on_bad=lambda _: None)


def _output_rows(output: OutputFolder, name: str, schema: pa.Schema) -> Iterator[tuple[Any, ...]]:
    for table in output.read(name, schema, rows_per_chunk=ROWS_PER_CHUNK):
        yield from _exact_rows(table)


def _exact_rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    if not table.num_columns:
        yield from ((),) * table.num_rows
    yield from zip(*map(exact_values, table.columns), strict=True)


def _input_lines(partition: Partition, schema: pa.Schema) -> Iterator[_Line]:
    names, with_lines = schema.names, pa.schema([*schema, LINE_FIELD])
    for table in _input_tables(partition, with_lines):
        inputs = table.select(names)
        texts = table.column(LINE).to_pylist()
        if None in texts:
            texts = to_lines(inputs)
        for text, values in zip(texts, _plain_rows(inputs), strict=True):
            yield _Line(text, names, values)


def _plain_rows(table: pa.Table) -> Iterator[Sequence[Any]]:
    """Yield each row's values as Python has them; of rows that Python cannot hold, nothing that equals anything."""
    try:
        columns = [column.to_pylist() for column in table.columns]
    except (pa.ArrowException, ValueError, OverflowError, TypeError, LookupError):
        yield from ((object(),),) * table.num_rows
    else:
        yield from zip(*columns, strict=True) if columns else ((),) * table.num_rows


def _dumped(values: Sequence[Any]) -> bytes:
    """Return values as version 0.1.0 of this package wrote them in lines."""
    return orjson.dumps(values, default=_as_text)


def _as_text(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
