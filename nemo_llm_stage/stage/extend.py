"""
A table and the outcomes of its rows become the table with the new columns, and only the rows that are kept.

Pure. Knows tables and results; knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from nemo_llm_stage.core import Outcome
from nemo_llm_stage.stage.keep import KeepIf
from nemo_llm_stage.stage.output_columns import OutputColumns
from nemo_llm_stage.stage.table import rows_of, take_rows, with_columns


class Extended(NamedTuple):
    """
    A table with a stage's columns.

    Attributes:
        table: The rows that are kept.
        rows: For each of them, the index of the row that it was made from; rising.
        dropped: Indices of the rows that `keep_if` dropped entirely.
    """

    table: Any
    rows: Sequence[int]
    dropped: frozenset[int]


def extend(table: Any, outcomes: Sequence[Outcome], outputs: Sequence[OutputColumns]) -> Extended:
    """Return `table`, with one outcome for each row, with the columns of `outputs` added."""
    fields: list[pa.Field] = []
    arrays: list[pa.Array] = []
    rows: Sequence[int] = range(len(outcomes))
    for output in outputs:
        columns, rows = output.arrays([outcome[output.name] for outcome in outcomes])
        fields += output.fields
        arrays += columns
    if len(rows) > len(outcomes):
        table = take_rows(table, rows)
    return Extended(with_columns(table, fields, arrays), rows, frozenset())


def drop(extended: Extended, outcomes: Sequence[Outcome], keep_if: KeepIf, sources: Mapping[str, str]) -> Extended:
    """
    Return the rows that are kept.

    Args:
        extended: From `extend`.
        outcomes: Of the rows that it was made from.
        keep_if: Decides.
        sources: Written column that `keep_if` may use → its output column.
    """
    values = rows_of(extended.table, sorted(keep_if.required_columns))
    pairs = enumerate(zip(values, extended.rows, strict=True))
    kept = [place for place, (row, index) in pairs if keep_if.keeps(row, outcomes[index], sources)]
    if len(kept) == len(values):
        return extended
    rows = [extended.rows[place] for place in kept]
    return Extended(take_rows(extended.table, kept), rows, frozenset(extended.rows) - frozenset(rows))
