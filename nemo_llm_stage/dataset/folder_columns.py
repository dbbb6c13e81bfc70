"""
Columns that the names of folders give, as in ``year=2024/lang=en/a.parquet``.

Typed as pyarrow does: whole numbers are int32, all else is text. Knows paths and tables.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from nemo_llm_stage.dataset.files import InputFile, folder_values
from nemo_llm_stage.dataset.json_lines import joined, to_lines
from nemo_llm_stage.dataset.jsonl import LINE, LINE_FIELD

FOLDER_KEY = b"nemo_llm_stage:folder"
"""Metadata of a field while a job runs: its values come from the names of folders."""

_WHOLE = re.compile(r"-?[0-9]{1,10}")


def folder_fields(files: Sequence[InputFile], columns: Collection[str]) -> list[pa.Field]:
    """Return a field for each name that folders of `files` give a value to; not for one of `columns`."""
    values: dict[str, list[str]] = {}
    for file in files:
        for name, value in file.folder_values:
            values.setdefault(name, []).extend([] if value is None else [value])
    return [
        pa.field(name, pa.int32() if all(map(_is_int32, found)) else pa.string(), metadata={FOLDER_KEY: b""})
        for name, found in values.items()
        if name not in columns
    ]


def with_folder_values(table: pa.Table, path: str) -> pa.Table:
    """Return rows of the file at `path` with the values that its folders give; also beside their lines."""
    places = [place for place, field in enumerate(table.schema) if FOLDER_KEY in (field.metadata or {})]
    if not places:
        return table
    found = dict(folder_values(path.split("/")[:-1]))
    for place in places:
        field = table.schema.field(place)
        value = found.get(field.name)
        typed: Any = int(value) if value is not None and pa.types.is_integer(field.type) else value
        table = table.set_column(place, field, pa.array([typed] * table.num_rows, field.type))
    line = table.schema.get_field_index(LINE)
    if line >= 0:
        added = to_lines(table.select([table.schema.names[place] for place in places]))
        lines = [text and joined(text, more) for text, more in zip(table.column(line).to_pylist(), added, strict=True)]
        table = table.set_column(line, LINE_FIELD, pa.array(lines, LINE_FIELD.type))
    return table


def _is_int32(value: str) -> bool:
    return _WHOLE.fullmatch(value) is not None and -(1 << 31) <= int(value) < 1 << 31
