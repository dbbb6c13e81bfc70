"""
A table and what its rows came to become the table with the new columns, and only the rows that stay.

Pure. Knows tables and results; knows nothing of how results come about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from nemo_llm_stage.core import Outcome
from nemo_llm_stage.stage.keep import KeepIf
from nemo_llm_stage.stage.table import rows_of, take_rows, with_columns

if TYPE_CHECKING:
    from nemo_llm_stage.stage.stage import LLMStage


class Extended(NamedTuple):
    """
    A table with a stage's columns.

    Attributes:
        table: The rows that stay.
        rows: For each of them, the index of the row that it was made from; rising.
        dropped: Indices of the rows of which nothing stays, by `keep_if`.
    """

    table: Any
    rows: Sequence[int]
    dropped: frozenset[int]


def extend(table: Any, outcomes: Sequence[Outcome], members: Sequence[LLMStage]) -> Extended:
    """Return `table`, of which each row has an outcome, with the columns of `members`."""
    fields: list[pa.Field] = []
    arrays: list[pa.Array] = []
    rows: Sequence[int] = range(len(outcomes))
    for member in members:
        columns, rows = member.columns.arrays([outcome[member.output_column] for outcome in outcomes])
        fields += member.columns.fields
        arrays += columns
    if len(rows) > len(outcomes):
        table = take_rows(table, rows)
    return Extended(with_columns(table, fields, arrays), rows, frozenset())


def drop(extended: Extended, outcomes: Sequence[Outcome], keep_if: KeepIf, judged: Mapping[str, str]) -> Extended:
    """
    Return the rows that stay.

    Args:
        extended: From `extend`.
        outcomes: Of the rows that it was made from.
        keep_if: Tells.
        judged: Name of an answer that it may use → output column that the answer comes from.
    """
    values = rows_of(extended.table, sorted(keep_if.required_columns))
    pairs = enumerate(zip(values, extended.rows, strict=True))
    kept = [place for place, (row, index) in pairs if keep_if.keeps(row, outcomes[index], judged)]
    if len(kept) == len(values):
        return extended
    rows = [extended.rows[place] for place in kept]
    return Extended(take_rows(extended.table, kept), rows, frozenset(extended.rows) - frozenset(rows))
