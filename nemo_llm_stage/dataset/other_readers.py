"""
Parquet rows as readers see them that no job uses, so that `verify` sees a fault in reading.

Arrow on another way: dictionaries where a job reads text, other batches, a file read ahead. And DuckDB, where it is
installed and both files are local: another library altogether. Knows files and partitions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from nemo_llm_stage.dataset.arrow_types import conform
from nemo_llm_stage.dataset.bad_input import unreadable
from nemo_llm_stage.dataset.parquet_file import open_parquet, read_metadata, read_options
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.read import finished
from nemo_llm_stage.dataset.renames import is_renamed, with_names
from nemo_llm_stage.dataset.storage import open_filesystem

_ROWS_PER_BATCH = 997
"""Unlike any other number of rows here."""

_WITH_DICTIONARIES = {"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"}


def read_otherwise(partition: Partition, schema: pa.Schema) -> Iterator[pa.Table]:
    """
    Yield a partition of a Parquet file as `read_partition` does, by another way through Arrow.

    Raises:
        InputError: The file cannot be read.
    """
    fs, path = open_filesystem(partition.path)
    try:
        with fs.open(path, "rb") as raw:
            texts = [] if is_renamed(schema) else _texts(read_metadata(raw), schema)
            file = open_parquet(raw, pre_buffer=True, read_dictionary=texts, **read_options(schema))
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
            place = 0
            for number, size in enumerate(sizes):
                if place < partition.stop and place + size > partition.start:
                    batches = file.iter_batches(_ROWS_PER_BATCH, row_groups=[number], use_threads=False)
                    yield from _within(batches, place, partition, schema)
                place += size
    except Exception as error:  # a store's library may raise anything
        raise unreadable(partition.path, error) from error


def _texts(metadata: pq.FileMetaData, schema: pa.Schema) -> list[str]:
    """Return the text columns of a file that Arrow can read as dictionaries: those without a page encoded by deltas."""
    texts = {field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)}
    names = texts & {metadata.schema.column(number).path for number in range(metadata.num_columns)}
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if not set(column.encodings) <= _WITH_DICTIONARIES:
                names.discard(column.path_in_schema)
    return sorted(names)


def _within(
    batches: Iterator[pa.RecordBatch], place: int, partition: Partition, schema: pa.Schema
) -> Iterator[pa.Table]:
    """Yield those rows of a row group, whose first has the number `place`, that are in the partition."""
    for batch in batches:
        low, high = max(0, partition.start - place), min(batch.num_rows, partition.stop - place)
        if low < high:
            table = pa.Table.from_batches([with_names(batch.slice(low, high - low), schema)])
            yield finished(conform(table, schema), partition, place + low)
        place += batch.num_rows


def can_use_duckdb(partition: Partition, output: Any, schema: pa.Schema) -> bool:
    """Whether DuckDB can read a partition's file and the output's, and knows the columns of both by their names."""
    if is_renamed(schema):
        return False
    is_local = isinstance(output, LocalFileSystem) and isinstance(open_filesystem(partition.path)[0], LocalFileSystem)
    return partition.format == "parquet" and is_local and importlib.util.find_spec("duckdb") is not None


class NotReadError(Exception):
    """DuckDB does not know an encoding, a type or a value."""


def rows_in_duckdb(partition: Partition, written: str, columns: Sequence[str]) -> tuple[Iterator[str], Iterator[str]]:
    """
    Return the rows of a partition and those of its output as DuckDB reads both, as text.

    Args:
        partition: What was read.
        written: Path of the local file with the output.
        columns: Of the input.

    Raises:
        NotReadError: DuckDB does not read them; also from the iterators.
    """
    path = open_filesystem(partition.path)[1]
    theirs, ours = _types(path), _types(written)
    names = [name for name in columns if name in theirs and name in ours]
    casts = [f"cast({_quoted(name)} as {ours[name]})" for name in names]
    rows = f"file_row_number >= {partition.start} and file_row_number < {partition.stop}"
    gone = set(partition.deleted)
    before = _select(path, casts, f"where {rows}")
    after = _select(written, [_quoted(name) for name in names])
    return (row for number, row in before if number not in gone), (row for _, row in after)


def _types(path: str) -> dict[str, str]:
    source = _source(path)
    return {name: kind for name, kind, *_ in _query(f"describe select * from {source}")}  # noqa: S608 - quoted


def _select(path: str, columns: Sequence[str], condition: str = "") -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each row."""
    row = f"cast(row({', '.join(columns)}) as varchar)" if columns else "''"
    source = _source(path, "file_row_number=true")
    yield from _query(f"select file_row_number, {row} from {source} {condition} order by file_row_number")  # noqa: S608 - quoted


def _query(sql: str) -> Iterator[Any]:
    import duckdb

    try:
        with duckdb.connect(config={"threads": 1}) as connection:
            cursor = connection.execute(sql)
            while rows := cursor.fetchmany(_ROWS_PER_BATCH):
                yield from rows
    except duckdb.Error as error:
        raise NotReadError(str(error)) from error


def _source(path: str, *options: str) -> str:
    return f"read_parquet({_quoted(path, chr(39))}, {', '.join(['hive_partitioning=false', *options])})"


def _quoted(name: str, quote: str = '"') -> str:
    return f"{quote}{name.replace(quote, 2 * quote)}{quote}"
