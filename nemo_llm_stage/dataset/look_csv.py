"""
A look into CSV files before a job: all of their records, for the types of the columns and the places to cut at.

Knows records and types; knows nothing of partitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from nemo_llm_stage.dataset.bad_input import BadInput, OnBad
from nemo_llm_stage.dataset.csv_records import read_names, read_records
from nemo_llm_stage.dataset.csv_types import ColumnTypes
from nemo_llm_stage.dataset.files import InputFile
from nemo_llm_stage.dataset.look import Contents, LineOptions, OnDone, damaged
from nemo_llm_stage.dataset.merge import check_names
from nemo_llm_stage.errors import InputError

_NUM_THREADS = 16


@dataclass(frozen=True, slots=True)
class _Scanned:
    types: ColumnTypes
    num_rows: int
    marks: Sequence[int]


def look_into_csv(
    files: Sequence[InputFile],
    options: LineOptions,
    declared: Mapping[str, pa.DataType],
    on_done: OnDone,
) -> list[Contents | BadInput]:
    """
    Return what CSV files hold, with one schema for all.

    Args:
        files: CSV files.
        options: How; all of a file is read, as only that tells its types.
        declared: Types of columns that are given and not looked for.
        on_done: Told of bytes that were looked at.

    Raises:
        InputError: A file cannot be read, a record is broken, or a value is not of its declared type.
    """

    def scan(file: InputFile) -> _Scanned | BadInput:
        try:
            return _scan(file, options, declared, on_done)
        except InputError as error:
            return damaged(file, error, skips_bad=options.skips_bad)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        found = list(pool.map(scan, files))
    types = ColumnTypes((), declared)
    for scanned in found:
        if isinstance(scanned, _Scanned):
            types.merge(scanned.types)
    return [
        scanned if isinstance(scanned, BadInput) else _contents(file, scanned, types.schema, options.stride)
        for file, scanned in zip(files, found, strict=True)
    ]


def _scan(file: InputFile, options: LineOptions, declared: Mapping[str, pa.DataType], on_done: OnDone) -> _Scanned:
    ignore: OnBad | None = (lambda _: None) if options.skips_bad else None
    names, _ = read_names(file.path)
    check_names(file.path, names)
    types = ColumnTypes(names, declared)
    marks: list[int] = []
    num_rows = num_told = 0
    for records in read_records(file.path, types=declared, on_bad=ignore):
        types.add(records.table)
        marks.extend(records.starts[-num_rows % options.stride :: options.stride])
        num_rows += len(records.starts)
        place = min(records.starts[-1], file.size)  # of the unpacked text, where the file is compressed
        on_done(place - num_told)
        num_told = place
    on_done(file.size - num_told)
    return _Scanned(types, num_rows, marks)


def _contents(file: InputFile, scanned: _Scanned, schema: pa.Schema, stride: int) -> Contents:
    blocks = [(offset, min(stride, scanned.num_rows - number * stride)) for number, offset in enumerate(scanned.marks)]
    return Contents(file, schema, scanned.num_rows, blocks=blocks)
