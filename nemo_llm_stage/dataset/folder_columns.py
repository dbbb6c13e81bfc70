"""
Columns whose values hold for a whole file: of the names of folders (``year=2024/lang=en/a.parquet``), or of a table.

Typed as pyarrow does: whole numbers are int32, all else is text. Knows paths and tables.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import pyarrow as pa

from nemo_llm_stage.dataset.files import InputFile
from nemo_llm_stage.dataset.json_lines import joined, to_lines
from nemo_llm_stage.dataset.jsonl import LINE, LINE_FIELD
from nemo_llm_stage.dataset.tables import FOLDER_KEY

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


def with_folder_values(table: pa.Table, values: Sequence[tuple[str, str | None]]) -> pa.Table:
    """Return rows of a file with the `values` that hold for all of it; also beside their lines."""
    places = [place for place, field in enumerate(table.schema) if FOLDER_KEY in (field.metadata or {})]
    if not places:
        return table
    found = dict(values)
    for place in places:
        field = table.schema.field(place)
        value = pa.scalar(found.get(field.name), pa.string()).cast(field.type)
        table = table.set_column(place, field, pa.repeat(value, table.num_rows))
    line = table.schema.get_field_index(LINE)
    if line >= 0:
        added = to_lines(table.select([table.schema.names[place] for place in places]))
        lines = [text and joined(text, more) for text, more in zip(table.column(line).to_pylist(), added, strict=True)]
        table = table.set_column(line, LINE_FIELD, pa.array(lines, LINE_FIELD.type))
    return table


def _is_int32(value: str) -> bool:
    return _WHOLE.fullmatch(value) is not None and -(1 << 31) <= int(value) < 1 << 31
