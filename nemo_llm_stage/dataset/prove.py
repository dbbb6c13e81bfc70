"""
Proof, before anything is paid for, that the values of a file fit the types that all files have together.

Reads only the columns whose type says nothing of it, e.g. integers that are to be floats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.dataset.arrow_file import ArrowFile
from nemo_llm_stage.dataset.arrow_values import exact_values
from nemo_llm_stage.dataset.bad_input import unreadable
from nemo_llm_stage.dataset.files import InputFile
from nemo_llm_stage.dataset.merge import is_widening
from nemo_llm_stage.dataset.parquet_file import open_parquet, read_options
from nemo_llm_stage.dataset.renames import is_renamed, with_names
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


def prove_writing(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """
    Write the columns of unusual types as Parquet, in memory, and refuse those that are not read back as they were.

    Args:
        path: Of the file that they are in.
        schema: Its own.
        batches: Its rows.

    Raises:
        InputError: Parquet does not hold a value, or Arrow cannot write it.
    """
    names = [field.name for field in schema if not _is_usual(field.type)]
    for batch in batches if names else ():
        for name in names:
            table = pa.Table.from_batches([batch.select([name])])
            try:
                pq.write_table(table, sink := pa.BufferOutputStream())
                same = exact_values(pq.read_table(sink.getvalue()).column(0)) == exact_values(table.column(0))
            except (pa.ArrowException, ValueError, TypeError) as error:
                raise InputError(f"{path!r}: column {name!r} cannot be written as Parquet: {error}.") from None
            if not same:
                kind = schema.field(name).type
                raise InputError(f"{path!r}: Parquet does not hold the values of column {name!r} ({kind}); convert it.")


def _is_usual(kind: pa.DataType) -> bool:
    """Whether Parquet holds every value of a type, and Arrow writes it."""
    if kind.num_fields:
        return all(_is_usual(kind.field(number).type) for number in range(kind.num_fields))
    if pa.types.is_timestamp(kind):
        return bool(kind.unit != "s")
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_binary)
    others = (pa.types.is_large_string, pa.types.is_large_binary, pa.types.is_date32, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in (*tests, *others))


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
        for batch in _batches(file, schema, names, wanted):
            for name in names:
                _check(file.path, name, batch.column(name), wanted.field(name).type)
    except InputError:
        raise
    except Exception as error:  # a store's library may raise anything
        raise unreadable(file.path, error) from error


def _batches(
    file: InputFile, schema: pa.Schema, names: list[str], wanted: pa.Schema
) -> Iterator[pa.RecordBatch | pa.Table]:
    if file.format == "csv":
        from nemo_llm_stage.dataset.csv_records import read_records  # no other format needs it

        types = {field.name: field.type for field in schema}
        yield from (records.table for records in read_records(file.path, types=types, on_bad=lambda _: None))
    elif file.format == "arrow":
        with contextlib.closing(ArrowFile(file.path)) as arrow:
            yield from arrow.batches(0)
    else:
        fs, path = open_filesystem(file.path)
        with fs.open(path, "rb") as raw, open_parquet(raw, pre_buffer=False, **read_options(schema)) as parquet:
            columns = None if is_renamed(wanted) else names
            for batch in parquet.iter_batches(batch_size=_ROWS_PER_BATCH, columns=columns):
                yield with_names(batch, wanted)


def _check(path: str, name: str, values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> None:
    try:
        values.cast(kind)
    except pa.ArrowException as error:
        raise InputError(
            f"column {name!r} is {values.type} in {path!r} and would be {kind} with the other files, which does not "
            f"hold all of its values: {error}. Convert the column in one of them."
        ) from None
