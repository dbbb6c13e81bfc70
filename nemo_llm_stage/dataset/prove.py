"""
Proof, before anything is paid for, that the values of a file fit the types that all files have together.

Reads only the columns whose type says nothing of it, e.g. integers that are to be floats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.dataset.arrow_file import ArrowFile
from nemo_llm_stage.dataset.bad_input import unreadable
from nemo_llm_stage.dataset.csv_records import read_records
from nemo_llm_stage.dataset.files import InputFile
from nemo_llm_stage.dataset.merge import is_widening
from nemo_llm_stage.dataset.parquet_file import open_parquet, read_options
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.errors import InputError

_ROWS_PER_BATCH = 16_384


def check_types(schema: pa.Schema) -> None:
    """
    Refuse columns of types that Parquet has none of, e.g. a union, or a struct without fields.

    Raises:
        InputError: There is one.
    """
    for field in schema:
        try:
            pq.write_table(pa.Table.from_batches([], pa.schema([field])), pa.BufferOutputStream())
        except pa.ArrowException as error:
            raise InputError(
                f"column {field.name!r} is {field.type}, which no Parquet file can hold: {error}."
            ) from None


def prove_casts(file: InputFile, schema: pa.Schema, wanted: pa.Schema) -> None:
    """
    Read the columns of a file that may not fit, and refuse the file if one does not. Those of JSONL fit.

    Args:
        file: The file.
        schema: Its own.
        wanted: Of the dataset.

    Raises:
        InputError: A value has no place in the dataset's type, or the file cannot be read.
    """
    names = [field.name for field in schema if not is_widening(field.type, wanted.field(field.name).type)]
    if not names or file.format == "jsonl":
        return
    try:
        for batch in _batches(file, schema, names):
            for name in names:
                _check(file.path, name, batch.column(name), wanted.field(name).type)
    except InputError:
        raise
    except Exception as error:  # a store's library may raise anything
        raise unreadable(file.path, error) from error


def _batches(file: InputFile, schema: pa.Schema, names: list[str]) -> Iterator[pa.RecordBatch | pa.Table]:
    if file.format == "csv":
        types = {field.name: field.type for field in schema}
        yield from (records.table for records in read_records(file.path, types=types, on_bad=lambda _: None))
    elif file.format == "arrow":
        with contextlib.closing(ArrowFile(file.path)) as arrow:
            yield from arrow.batches(0)
    else:
        fs, path = open_filesystem(file.path)
        with fs.open(path, "rb") as raw, open_parquet(raw, pre_buffer=False, **read_options(schema)) as parquet:
            yield from parquet.iter_batches(batch_size=_ROWS_PER_BATCH, columns=names)


def _check(path: str, name: str, values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> None:
    try:
        values.cast(kind)
    except pa.ArrowException as error:
        raise InputError(
            f"column {name!r} is {values.type} in {path!r} and would be {kind} with the other files, which does not "
            f"hold all of its values: {error}. Convert the column in one of them."
        ) from None
