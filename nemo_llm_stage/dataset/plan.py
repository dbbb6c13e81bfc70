"""
Input files become partitions: the unit that is read, generated and committed at once.

Deterministic, from metadata; the plan is kept with the output, so that a resumed job has the same partitions whatever
the number of actors. Knows nothing of stages.
"""

from __future__ import annotations

import dataclasses
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa

from nemo_llm_stage.dataset.bad_input import BadInput, OnBad
from nemo_llm_stage.dataset.common_schema import TEXTS, check_alone, common_schema, fitting_schema, in_table, notices_of
from nemo_llm_stage.dataset.files import InputFile, is_sequential
from nemo_llm_stage.dataset.look import (
    Contents,
    LineOptions,
    OnMixedTypes,
    bytes_looked_at,
    look_into_lines,
    look_into_table,
)
from nemo_llm_stage.dataset.object_versions import versions_in
from nemo_llm_stage.dataset.prove import check_types, prove_casts
from nemo_llm_stage.dataset.tables import Table
from nemo_llm_stage.errors import InputError

MAX_ROWS_PER_PARTITION = 10_000
MIN_ROWS_PER_PARTITION = 1_000
NUM_PARTITIONS_WANTED = 64
"""By default a small dataset has this many partitions: enough for every actor, and a short tail at the end."""

OnScan = Callable[[int, int], None]
"""Told how many bytes of text were looked at, and of how many."""

ROWS_PER_BLOCK = 100
"""JSONL is cut at every so many rows of a file, where nobody asks for another number."""

_NUM_THREADS = 64


@dataclass(frozen=True, slots=True)
class Partition:
    """
    A range of one input file.

    Attributes:
        index: Place in the dataset's order, from 0; names the output file.
        path: The input file.
        format: ``parquet``, ``arrow``, ``jsonl`` or ``csv``.
        start: First row of a Parquet or Arrow file, or first byte of text; 0 where that is compressed.
        stop: One past the last; 1 of JSON whose rows do not have a line each: all count as beginning where it does.
        num_rows: None where only reading would tell.
        deleted: Numbers of rows in the range that are none, as the table that the file is of tells; rising.
        values: Columns whose values hold for the whole file, as text.
        file: The input file as it was when the job was planned; None where that is not known.
    """

    index: int
    path: str
    format: str
    start: int
    stop: int
    num_rows: int | None
    values: tuple[tuple[str, str | None], ...] = ()
    deleted: tuple[int, ...] = ()
    file: InputFile | None = dataclasses.field(default=None, compare=False)


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
        notices: What a person should know of the input.
        versions: Folder of each table, and object of each bucket with versions, that is read → its version.
    """

    files: tuple[InputFile, ...]
    schema: pa.Schema
    partitions: tuple[Partition, ...]
    num_rows: int
    is_exact: bool
    notices: tuple[str, ...] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


def make_plan(
    files: Sequence[InputFile],
    *,
    rows_per_partition: int | None = None,
    scan_input: str = "auto",
    on_bad: OnBad | None = None,
    on_mixed_types: OnMixedTypes = "stop",
    column_types: Mapping[str, pa.DataType] | None = None,
    tables: Sequence[Table] = (),
    onto: Plan | None = None,
    on_scan: OnScan | None = None,
) -> Plan:
    """
    Look into the files and cut them into partitions.

    Args:
        files: From `find_files`.
        rows_per_partition: None takes about 64 partitions of 1,000 to 10,000 rows. JSONL that is not counted is cut by
            bytes, so that its partitions have about as many rows; a compressed file is one partition.
        scan_input: ``sample`` looks at the first 4 MiB of each JSONL file for its types; ``full`` and ``auto`` read all
            of it, so that every line is checked and no field or type can come as a surprise.
        on_bad: Told of damaged files, which are left out; broken lines are for `read_partition` to tell. None makes
            both an error.
        on_mixed_types: What a field of JSON whose values have no common type leads to.
        column_types: Of CSV, columns whose types are not looked for but given.
        tables: Tables that files are of.
        onto: A plan that `files` are added to: its partitions stay, theirs come after. The columns are those of `onto`.
        on_scan: Told how many bytes of text were looked at, and of how many.

    Raises:
        InputError: A file cannot be read, a line is broken, or the files' columns do not go together.
    """
    options = LineOptions(
        is_sampled=scan_input == "sample",
        stride=rows_per_partition or ROWS_PER_BLOCK,
        skips_bad=on_bad is not None,
        on_mixed_types=on_mixed_types,
    )
    declared = {} if onto is None else {field.name: field.type for field in onto.schema}
    looks, notices = _look_into_all(files, options, declared | dict(column_types or {}), on_scan)
    of_path = {path: table for table in tables for path in table.files}
    check_alone(files, tables)
    contents = [in_table(content, of_path.get(content.file.path)) for content in _undamaged(files, looks, on_bad)]
    schema = common_schema(contents, of_path) if onto is None else fitting_schema(contents, onto.schema)
    check_types(schema)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        list(pool.map(lambda content: prove_casts(content.file, content.schema, schema), contents))
    before = Plan((), schema, (), 0, True) if onto is None else onto
    num_rows = sum(content.num_rows for content in contents)
    partitions = _partitions_of(contents, rows_per_partition or _usual_size(num_rows), tables, len(before.partitions))
    return Plan(
        (*before.files, *files),
        schema,
        (*before.partitions, *partitions),
        before.num_rows + num_rows - sum(len(partition.deleted) for partition in partitions),
        before.is_exact and all(content.is_exact for content in contents),
        (*notices, *notices_of(schema)),
        {
            **before.versions,
            **{table.folder: table.version for table in tables},
            **versions_in([f.path for f in files]),
        },
    )


def _undamaged(
    files: Sequence[InputFile], looks: Sequence[Contents | BadInput], on_bad: OnBad | None
) -> list[Contents]:
    """Return what the files hold that can be read; the others go to `on_bad`."""
    for look in looks:
        if isinstance(look, BadInput) and on_bad is not None:
            on_bad(look)
    contents = [look for look in looks if isinstance(look, Contents)]
    if not contents:
        raise InputError(f"all of the {len(files)} input files are damaged; the first is {files[0].path!r}.")
    return contents


def _usual_size(num_rows: int) -> int:
    """Return the rows of a partition where nobody asks for a number."""
    return min(MAX_ROWS_PER_PARTITION, max(MIN_ROWS_PER_PARTITION, -(-num_rows // NUM_PARTITIONS_WANTED)))


def _partitions_of(
    contents: Sequence[Contents], num_rows: int, tables: Sequence[Table], first_index: int
) -> tuple[Partition, ...]:
    """Return the partitions of the files, of about `num_rows` each."""
    ranges = [piece for content in contents for piece in _cut(content, num_rows)]
    if not ranges and first_index == 0:  # an input without rows still gives one file, which has the columns
        ranges = [(contents[0].file, 0, 0, 0)]
    deleted = {path: rows for table in tables for path, rows in table.deleted.items()}
    return tuple(
        without_rows(
            Partition(index, file.path, file.format, start, stop, num, tuple(file.folder_values), file=file),
            deleted.get(file.path, ()),
        )
        for index, (file, start, stop, num) in enumerate(ranges, first_index)
    )


def cut(partition: Partition, share: float) -> tuple[Partition, Partition] | None:
    """
    Return the first `share` of a partition, about, and the rest of it; None where it cannot be cut.

    Cut anywhere, its parts have the same rows: a line of JSONL belongs to the part that its first byte lies in. CSV
    cannot be cut anywhere, as a value may hold line ends.
    """
    if partition.format == "csv" or (is_sequential(partition.path) and partition.format == "jsonl"):
        return None
    middle = partition.start + max(1, round((partition.stop - partition.start) * share))
    if middle >= partition.stop:
        return None
    is_counted = partition.format != "jsonl"
    parts = (
        replace(partition, stop=middle, num_rows=middle - partition.start if is_counted else None),
        replace(partition, start=middle, num_rows=partition.stop - middle if is_counted else None),
    )
    return without_rows(parts[0], partition.deleted), without_rows(parts[1], partition.deleted)


def without_rows(partition: Partition, deleted: Sequence[int]) -> Partition:
    """Return a partition, whose `num_rows` counts all in its range, without the `deleted` rows of its file."""
    found = tuple(deleted[bisect_left(deleted, partition.start) : bisect_left(deleted, partition.stop)])
    if not found or partition.num_rows is None:
        return partition if partition.deleted == found else replace(partition, deleted=found)
    return replace(partition, num_rows=partition.num_rows - len(found), deleted=found)


class _Tally:
    """Counts what was looked at, for the progress display."""

    def __init__(self, files: Sequence[InputFile], options: LineOptions, on_scan: OnScan | None) -> None:
        self._num_bytes = sum(bytes_looked_at(file, options) for file in files)
        self._num_done = 0
        self._lock = threading.Lock()
        self._on_scan = on_scan

    def __call__(self, num_bytes: int) -> None:
        with self._lock:
            self._num_done += num_bytes
            if self._on_scan is not None:
                self._on_scan(self._num_done, self._num_bytes)


def _look_into_all(
    files: Sequence[InputFile],
    options: LineOptions,
    declared: Mapping[str, pa.DataType],
    on_scan: OnScan | None,
) -> tuple[list[Contents | BadInput], Sequence[str]]:
    """Return what each file holds, in order, and what a person should know of it."""
    of_format = {kind: [file for file in files if file.format == kind] for kind in ("jsonl", "csv")}
    tables = [file for file in files if file.format not in of_format]
    tell = _Tally([file for kept in of_format.values() for file in kept], options, on_scan)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        looks = list(pool.map(lambda file: look_into_table(file, skips_bad=options.skips_bad), tables))
    lines, notices = look_into_lines(of_format["jsonl"], options, tell) if of_format["jsonl"] else ([], [])
    records: list[Contents | BadInput] = []
    if of_format["csv"]:
        from nemo_llm_stage.dataset.look_csv import look_into_csv  # no other format needs it

        records = look_into_csv(of_format["csv"], options, declared, tell)
    looked_at = [*tables, *of_format["jsonl"], *of_format["csv"]]
    by_path = dict(zip((file.path for file in looked_at), [*looks, *lines, *records], strict=True))
    return [by_path[file.path] for file in files], notices


def _cut(content: Contents, rows: int) -> Iterator[tuple[InputFile, int, int, int | None]]:
    file = content.file
    if file.format not in TEXTS:
        for start in range(0, content.num_rows, rows):
            stop = min(start + rows, content.num_rows)
            yield file, start, stop, stop - start
    elif file.is_sequential:
        yield file, 0, file.size, content.num_rows if content.is_exact else None
    elif content.is_document:
        yield file, 0, 1, content.num_rows
    elif content.is_exact:
        start, num_rows = 0, 0
        for offset, num in content.blocks:
            if num_rows and num_rows + num > rows:
                yield file, start, offset, num_rows
                start, num_rows = offset, 0
            num_rows += num
        if num_rows:
            yield file, start, file.size, num_rows
    else:
        step = max(1, file.size * rows // content.num_rows)
        for start in range(0, file.size, step):
            yield file, start, min(start + step, file.size), None
