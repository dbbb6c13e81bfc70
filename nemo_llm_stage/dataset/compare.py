"""
Sets the rows of a committed file beside those of its input.

What was read is read again: the dear proof, after the cheap one of `verify`. Knows partitions and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import pyarrow as pa

from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.dataset.writer import plain_json

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
    is_json = output.format == "jsonl"
    inputs = _input_rows(partition, schema, is_json=is_json)
    before = None
    for number, row in enumerate(output.rows(name)):
        wanted = _identity([row.get(column) for column in schema.names], is_json=is_json)
        if repeats and wanted == before:
            continue
        before = wanted
        if not any(given == wanted for given in inputs):  # goes on where it stopped
            return number
    return None


def _input_rows(partition: Partition, schema: pa.Schema, *, is_json: bool) -> Iterator[Any]:
    for table in read_partition(partition, schema, rows_per_chunk=ROWS_PER_CHUNK, on_bad=lambda _: None):
        for row in table.to_pylist():
            yield _identity(list(row.values()), is_json=is_json)


def _identity(values: Sequence[Any], *, is_json: bool) -> Any:
    """Return what is the same for equal rows; of JSON, what its types make of the values. NaN is itself."""
    return orjson.dumps(values, default=plain_json) if is_json else repr(values)
