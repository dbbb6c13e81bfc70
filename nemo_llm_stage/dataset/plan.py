"""
Input files become partitions: the unit that is read, generated and committed at once.

Deterministic, from metadata; the plan is kept with the output, so that a resumed job has the same partitions whatever
the number of actors. Knows nothing of stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa

from nemo_llm_stage.dataset import jsonl
from nemo_llm_stage.dataset.bad_input import BadInput, OnBad, is_damage, unreadable
from nemo_llm_stage.dataset.files import InputFile
from nemo_llm_stage.dataset.merge import SchemaMerger
from nemo_llm_stage.dataset.parquet_file import schema_of
from nemo_llm_stage.dataset.prove import prove_casts
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.errors import InputError

MAX_ROWS_PER_PARTITION = 10_000
MIN_ROWS_PER_PARTITION = 1_000
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
        schema: Of every partition, with the metadata that the output keeps.
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


def make_plan(
    files: Sequence[InputFile],
    *,
    rows_per_partition: int | None = None,
    scan_input: str = "auto",
    on_bad: OnBad | None = None,
) -> Plan:
    """
    Look into the files and cut them into partitions.

    Args:
        files: From `find_files`.
        rows_per_partition: None takes about 64 partitions of 1,000 to 10,000 rows. JSONL that is too large to be
            counted is cut by bytes, so that its partitions have about as many rows; a compressed file is one partition.
        scan_input: ``full`` reads all of a JSONL input to check every line and take the types from all of them;
            ``sample`` looks at the first 4 MiB of each file; ``auto`` does the first up to 256 MiB in all.
        on_bad: Told of damaged files, which are left out; broken lines are for `read_partition` to tell. None makes
            both an error.

    Raises:
        InputError: A file cannot be read, a line is broken, or the files' columns do not go together.
    """
    num_jsonl_bytes = sum(file.size for file in files if file.format == "jsonl")
    is_full = scan_input == "full" or (scan_input == "auto" and num_jsonl_bytes <= FULL_SCAN_BYTES)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        looks = list(pool.map(lambda file: _look_into(file, is_full=is_full, skips_bad=on_bad is not None), files))
    contents = [look for look in looks if isinstance(look, _Contents)]
    if on_bad is not None:
        for look in looks:
            if isinstance(look, BadInput):
                on_bad(look)
    if not contents:
        raise InputError(f"all of the {len(files)} input files are damaged; the first is {files[0].path!r}.")
    schema = _merge(contents)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        list(pool.map(lambda content: prove_casts(content.file, content.schema, schema), contents))
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
    return Plan(tuple(files), schema, partitions, num_rows, is_exact)


def cut(partition: Partition, share: float) -> tuple[Partition, Partition] | None:
    """
    Return the first `share` of a partition, about, and the rest of it; None where it cannot be cut.

    Cut anywhere, its parts have the same rows: a line of JSONL belongs to the part that its first byte lies in.
    """
    if partition.path.endswith((".gz", ".zst")) and partition.format == "jsonl":
        return None
    middle = partition.start + max(1, round((partition.stop - partition.start) * share))
    if middle >= partition.stop:
        return None
    is_counted = partition.format == "parquet"
    return (
        replace(partition, stop=middle, num_rows=middle - partition.start if is_counted else None),
        replace(partition, start=middle, num_rows=partition.stop - middle if is_counted else None),
    )


def _look_into(file: InputFile, *, is_full: bool, skips_bad: bool) -> _Contents | BadInput:
    """Return what the file holds, or, if that may be skipped, that it is damaged."""
    try:
        if file.format == "parquet":
            return _look_into_parquet(file)
        return _look_into_jsonl(file, is_full=is_full, skips_lines=skips_bad)
    except InputError as error:
        if not skips_bad or not is_damage(error.__cause__):
            raise
        return BadInput(file.path, None, 0, str(error))


def _look_into_jsonl(file: InputFile, *, is_full: bool, skips_lines: bool) -> _Contents:
    on_bad = (lambda _: None) if skips_lines else None  # told of when the rows are read
    schema, offsets, end = jsonl.scan(file, None if is_full else SAMPLE_BYTES, on_bad)
    if is_full or (end >= file.size and not file.is_compressed):
        return _Contents(file, schema, len(offsets), offsets=offsets)
    bytes_per_row = max(1, end // max(1, len(offsets)))
    return _Contents(file, schema, max(1, file.size // bytes_per_row), is_exact=False)


def _look_into_parquet(file: InputFile) -> _Contents:
    fs, path = open_filesystem(file.path)
    try:
        with fs.open(path, "rb") as raw:
            schema, parquet = schema_of(raw)
            with parquet:
                return _Contents(file, schema, parquet.metadata.num_rows)
    except Exception as error:
        if not isinstance(error, OSError | pa.ArrowException):
            raise unreadable(file.path, error) from error
        advice = " A Parquet file that is still being written, or was cut off, has no footer."
        raise unreadable(file.path, error, advice) from error


def _merge(contents: Sequence[_Contents]) -> pa.Schema:
    """Return the schema of all files. What is null in all lines of JSONL is a string, unless Parquet types it."""
    merger = SchemaMerger()
    for content in contents:
        merger.add(content.file.path, content.schema)
    typed = {name for content in contents if content.file.format == "parquet" for name in content.schema.names}
    fields = [field if field.name in typed else jsonl.declared_field(field) for field in merger.schema]
    return pa.schema(fields, metadata=merger.schema.metadata)


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
