"""
The failed rows of a committed table: taken out to be asked again, and put back.

Knows tables and error columns; knows nothing of files or stages.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nemo_llm_stage.errors import SkippedError


def failed_rows(table: pa.Table, error_column: str, kinds: Collection[str] | None) -> pa.Table:
    """
    Return the rows of `table` that failed, in order.

    Args:
        table: With `error_column`, whose values are ``kind: message`` or null.
        error_column: Its name.
        kinds: Only of these kinds; None for all. Skipped rows have not failed.
    """
    return table.filter(_is_failed(table, error_column, kinds))


def put_back(table: pa.Table, answered: pa.Table, error_column: str, kinds: Collection[str] | None) -> pa.Table:
    """
    Return `table` with the rows of `failed_rows(table, …)` replaced, in order, by those of `answered`.

    Both tables have the same schema.
    """
    is_failed = _is_failed(table, error_column, kinds).to_pylist()
    next_answered = table.num_rows
    places = []
    for place, failed in enumerate(is_failed):
        places.append(next_answered if failed else place)
        next_answered += failed
    return pa.concat_tables([table, answered]).take(pa.array(places, pa.int64()))


def to_columns(rows: Sequence[Mapping[str, Any]], fields: Sequence[pa.Field]) -> list[pa.Array]:
    """Return the values that `rows`, read from JSON, have for `fields`, in their types."""
    return [_to_array([row[field.name] for row in rows], field.type) for field in fields]


def _to_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, type=kind)
    except (pa.ArrowException, TypeError):  # e.g. a date, which JSON has as text
        return pa.array(values, type=pa.string()).cast(kind)


def _is_failed(table: pa.Table, error_column: str, kinds: Collection[str] | None) -> pa.ChunkedArray:
    kind = pc.replace_substring_regex(table.column(error_column), pattern=r"(?s):.*", replacement="")
    if kinds is None:
        return pc.and_(pc.is_valid(kind), pc.fill_null(pc.not_equal(kind, SkippedError.kind), False))
    return pc.is_in(kind, value_set=pa.array(sorted(kinds), pa.string()))
