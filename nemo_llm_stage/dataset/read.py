"""
The rows of a partition, in order and chunk by chunk.

Knows partitions and file formats; knows nothing of how they were planned.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from nemo_llm_stage.dataset import jsonl
from nemo_llm_stage.dataset.arrow_types import conform
from nemo_llm_stage.dataset.bad_input import BadInput, OnBad, is_damage, unreadable
from nemo_llm_stage.dataset.cursor import Cursors
from nemo_llm_stage.dataset.files import is_sequential
from nemo_llm_stage.dataset.folder_columns import with_folder_values
from nemo_llm_stage.dataset.parquet_file import read_options
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.renames import with_names
from nemo_llm_stage.errors import InputError

BYTES_PER_CHUNK = 4 << 20
"""Of JSONL: so many close a chunk early, as rows may be of any size. A usual row of a few kB never gets there."""


def read_partition(
    partition: Partition,
    schema: pa.Schema,
    *,
    rows_per_chunk: int,
    on_bad: OnBad | None = None,
    cursors: Cursors | None = None,
) -> Iterator[pa.Table]:
    """
    Yield the partition's rows in order, as tables of exactly `schema` and at most `rows_per_chunk` rows.

    Holds one chunk at a time, whatever the size of the file's row groups.

    Args:
        partition: What to read.
        schema: Of the plan.
        rows_per_chunk: At most.
        on_bad: Told in the end of broken lines, and of the rest of a file from where it is damaged: they are left out.
            None makes them an error.
        cursors: Where Parquet and Arrow readers are kept from one partition to the next; of `rows_per_chunk` rows.

    Raises:
        InputError: The file cannot be read, or a line is broken; names it.
    """
    records: list[BadInput] = []
    num_rows = 0
    note = None if on_bad is None else records.append
    if partition.format == "jsonl":
        tables = _read_jsonl(partition, schema, rows_per_chunk, note)
    elif partition.format == "csv":
        tables = _read_csv(partition, schema, rows_per_chunk, note)
    else:
        tables = _read_groups(partition, schema, cursors or Cursors(rows_per_chunk), is_kept=cursors is not None)
    try:
        for table in tables:
            num_rows += table.num_rows
            yield with_folder_values(table, partition.values)
    except InputError as error:
        if on_bad is None or not is_damage(error.__cause__):
            raise
        num_seen = num_rows + len(records)
        num_left = 0 if partition.num_rows is None else max(0, partition.num_rows - num_seen)
        records.append(BadInput(partition.path, None, num_left, str(error)))
    if on_bad is not None:
        for record in records:
            on_bad(record)


def _read_jsonl(
    partition: Partition, schema: pa.Schema, rows_per_chunk: int, on_bad: OnBad | None
) -> Iterator[pa.Table]:
    parser = jsonl.LineParser(partition.path, on_bad, is_sampled=partition.num_rows is None)
    is_whole = is_sequential(partition.path)
    lines: list[tuple[int, bytes]] = []
    num_bytes = 0
    for line in jsonl.read_lines(partition.path, partition.start, None if is_whole else partition.stop):
        lines.append(line)
        num_bytes += len(line[1])
        if len(lines) == rows_per_chunk or num_bytes >= BYTES_PER_CHUNK:
            yield parser.to_table(lines, schema)
            lines, num_bytes = [], 0
    if lines:
        yield parser.to_table(lines, schema)


def _read_csv(partition: Partition, schema: pa.Schema, rows_per_chunk: int, on_bad: OnBad | None) -> Iterator[pa.Table]:
    from nemo_llm_stage.dataset.csv_records import read_records  # no other format needs it

    stop = None if is_sequential(partition.path) else partition.stop
    types = {field.name: field.type for field in schema if not pa.types.is_nested(field.type)}
    for records in read_records(partition.path, partition.start, stop, types=types, on_bad=on_bad):
        for start in range(0, records.table.num_rows, rows_per_chunk):
            yield conform(records.table.slice(start, rows_per_chunk), schema)


def finished(table: pa.Table, partition: Partition, place: int) -> pa.Table:
    """Return rows as they stand in the partition's file, from the row `place` on, as rows of the partition."""
    return with_folder_values(_without(table, partition.deleted, place), partition.values)


def _without(table: pa.Table, deleted: Sequence[int], place: int) -> pa.Table:
    """Return rows of a file without the deleted ones; the first row has the number `place`."""
    if not deleted:
        return table
    found = deleted[bisect_left(deleted, place) : bisect_left(deleted, place + table.num_rows)]
    is_kept = np.ones(table.num_rows, bool)
    is_kept[np.array(found, np.int64) - place] = False
    return table.filter(pa.array(is_kept))


def _read_groups(partition: Partition, schema: pa.Schema, cursors: Cursors, *, is_kept: bool) -> Iterator[pa.Table]:
    try:
        cursor = cursors.take(partition.path, partition.start, read_options(schema))
        try:
            place = partition.start
            for batch in cursor.read(partition.start, partition.stop):
                table = pa.Table.from_batches([with_names(batch, schema)])
                yield _without(conform(table, schema), partition.deleted, place)
                place += batch.num_rows
        except BaseException:
            cursor.close()
            raise
        if is_kept:
            cursors.give_back(cursor)
        else:
            cursor.close()
    except Exception as error:  # a store's library may raise anything
        raise unreadable(partition.path, error) from error
