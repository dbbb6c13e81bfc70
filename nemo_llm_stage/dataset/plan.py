"""
Input files become partitions: the unit that is read, generated and committed at once.

Deterministic, from metadata; the plan is kept with the output, so that a resumed job has the same partitions whatever
the number of actors. Knows nothing of stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.dataset import jsonl
from nemo_llm_stage.dataset.files import InputFile
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.errors import InputError

MAX_ROWS_PER_PARTITION = 10_000
MIN_ROWS_PER_PARTITION = 128
NUM_PARTITIONS_WANTED = 64
"""By default a small dataset has this many partitions: enough for every actor, and a short tail at the end."""

FULL_SCAN_BYTES = 256 << 20
"""JSONL up to this size in all is read once before the job, so that a broken line is found before anything is paid."""

SAMPLE_BYTES = 4 << 20
_NUM_THREADS = 16


@dataclass(frozen=True, slots=True)
class Partition:
    """
    A range of one input file.

    Attributes:
        index: Place in the dataset's order, from 0; names the output file.
        path: The input file.
        format: ``parquet`` or ``jsonl``.
        start: First row of a Parquet file, or first byte of a JSONL file; 0 for a compressed one.
        stop: One past the last.
        num_rows: None where only reading would tell.
    """

    index: int
    path: str
    format: str
    start: int
    stop: int
    num_rows: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """
    The whole input.

    Attributes:
        files: Sorted by path.
        schema: Of every partition, without metadata.
        partitions: In input order.
        num_rows: Of all partitions; estimated where `is_exact` is false.
        is_exact: Whether `num_rows` was counted.
    """

    files: tuple[InputFile, ...]
    schema: pa.Schema
    partitions: tuple[Partition, ...]
    num_rows: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a look into one file tells. `offsets` are those of a JSONL file's lines, if all were looked at."""

    file: InputFile
    schema: pa.Schema
    num_rows: int
    is_exact: bool = True
    offsets: Sequence[int] = ()


def make_plan(files: Sequence[InputFile], *, rows_per_partition: int | None = None, scan_input: str = "auto") -> Plan:
    """
    Look into the files and cut them into partitions.

    Args:
        files: From `find_files`.
        rows_per_partition: None takes about 64 partitions of 128 to 10,000 rows. JSONL that is too large to be counted
            is cut by bytes, so that its partitions have about as many rows; a compressed file is one partition.
        scan_input: ``full`` reads all of a JSONL input to check every line and take the types from all of them;
            ``sample`` looks at the first 4 MiB of each file; ``auto`` does the first up to 256 MiB in all.

    Raises:
        InputError: A file cannot be read, a line is broken, or the files' columns do not go together.
    """
    num_jsonl_bytes = sum(file.size for file in files if file.format == "jsonl")
    is_full = scan_input == "full" or (scan_input == "auto" and num_jsonl_bytes <= FULL_SCAN_BYTES)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        contents = list(pool.map(lambda file: _look_into(file, is_full=is_full), files))
    schema = pa.schema([])
    for content in contents:
        _check_names(content)
        schema = jsonl.merge_schemas(content.file.path, schema, content.schema)
    num_rows = sum(content.num_rows for content in contents)
    rows = rows_per_partition or min(
        MAX_ROWS_PER_PARTITION, max(MIN_ROWS_PER_PARTITION, -(-num_rows // NUM_PARTITIONS_WANTED))
    )
    ranges = [cut for content in contents for cut in _cut(content, rows)]
    if not ranges:  # an input without rows still gives one file, which has the columns
        ranges = [(contents[0], 0, 0, 0)]
    partitions = tuple(
        Partition(index, content.file.path, content.file.format, start, stop, num)
        for index, (content, start, stop, num) in enumerate(ranges)
    )
    is_exact = all(content.is_exact for content in contents)
    return Plan(tuple(files), jsonl.declared(schema), partitions, num_rows, is_exact)


def read_partition(partition: Partition, schema: pa.Schema, *, rows_per_chunk: int) -> Iterator[pa.Table]:
    """
    Yield the partition's rows in order, as tables of exactly `schema` and at most `rows_per_chunk` rows.

    Holds one chunk at a time, whatever the size of the file's row groups.

    Raises:
        InputError: The file cannot be read, or a line is broken; names it.
    """
    if partition.format == "parquet":
        return _read_parquet(partition, schema, rows_per_chunk)
    return _read_jsonl(partition, schema, rows_per_chunk)


def _read_jsonl(partition: Partition, schema: pa.Schema, rows_per_chunk: int) -> Iterator[pa.Table]:
    is_whole = partition.path.endswith((".gz", ".zst"))
    lines: list[tuple[int, bytes]] = []
    for line in jsonl.read_lines(partition.path, partition.start, None if is_whole else partition.stop):
        lines.append(line)
        if len(lines) == rows_per_chunk:
            yield jsonl.to_table(partition.path, lines, schema)
            lines = []
    if lines:
        yield jsonl.to_table(partition.path, lines, schema)


def _read_parquet(partition: Partition, schema: pa.Schema, rows_per_chunk: int) -> Iterator[pa.Table]:
    fs, path = open_filesystem(partition.path)
    try:
        with fs.open(path, "rb") as raw, pq.ParquetFile(raw, buffer_size=1 << 20) as file:
            first, groups = 0, []
            offset = 0
            for group in range(file.num_row_groups):
                num = file.metadata.row_group(group).num_rows
                if offset + num <= partition.start:
                    first = offset + num
                elif offset < partition.stop:
                    groups.append(group)
                offset += num
            for batch in file.iter_batches(batch_size=rows_per_chunk, row_groups=groups):
                low = max(partition.start - first, 0)
                high = min(partition.stop - first, batch.num_rows)
                first += batch.num_rows
                if low < high:
                    yield _conform(pa.Table.from_batches([batch.slice(low, high - low)]), schema)
                if first >= partition.stop:
                    return
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {partition.path!r}: {error}.") from error


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        if field.name not in table.schema.names:
            arrays.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        if isinstance(column.type, pa.BaseExtensionType):
            column = pa.chunked_array([chunk.storage for chunk in column.chunks], type=column.type.storage_type)
        arrays.append(column if column.type == field.type else column.cast(field.type))
    return pa.table(arrays, schema=schema)


def _look_into(file: InputFile, *, is_full: bool) -> _Contents:
    if file.format == "parquet":
        return _look_into_parquet(file)
    schema, offsets, end = jsonl.scan(file, None if is_full else SAMPLE_BYTES)
    if is_full or (end >= file.size and not file.is_compressed):
        return _Contents(file, schema, len(offsets), offsets=offsets)
    bytes_per_row = max(1, end // max(1, len(offsets)))
    return _Contents(file, schema, max(1, file.size // bytes_per_row), is_exact=False)


def _look_into_parquet(file: InputFile) -> _Contents:
    fs, path = open_filesystem(file.path)
    try:
        with fs.open(path, "rb") as raw, pq.ParquetFile(raw) as parquet:
            return _Contents(file, _plain(parquet.schema_arrow), parquet.metadata.num_rows)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"cannot read {file.path!r} as Parquet: {error}. A file that is still being written, or was cut off, has "
            "no footer."
        ) from error


def _plain(schema: pa.Schema) -> pa.Schema:
    """Return `schema` without metadata and extension types, which may carry code, as their plain storage."""
    return pa.schema(
        [
            pa.field(
                field.name, field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
            )
            for field in schema
        ]
    )


def _check_names(content: _Contents) -> None:
    names = content.schema.names
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{content.file.path!r} has more than one column {name!r}; rename or drop all but one.")


def _cut(content: _Contents, rows: int) -> Iterator[tuple[_Contents, int, int, int | None]]:
    file = content.file
    if file.format == "parquet":
        for start in range(0, content.num_rows, rows):
            stop = min(start + rows, content.num_rows)
            yield content, start, stop, stop - start
    elif file.is_compressed:
        yield content, 0, file.size, content.num_rows if content.is_exact else None
    elif content.is_exact:
        for first in range(0, content.num_rows, rows):
            last = min(first + rows, content.num_rows)
            stop = content.offsets[last] if last < content.num_rows else file.size
            yield content, content.offsets[first], stop, last - first
    else:
        step = max(1, file.size * rows // content.num_rows)
        for start in range(0, file.size, step):
            yield content, start, min(start + step, file.size), None
