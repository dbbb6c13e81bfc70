"""
The failed rows of a committed table: taken out to be asked again, and put back.

Knows tables, and which columns use which; knows nothing of files, and asks nobody.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from nemo_llm_stage.errors import SkippedError
from nemo_llm_stage.rows.column import Column
from nemo_llm_stage.rows.row import Known
from nemo_llm_stage.stage.extend import Extended
from nemo_llm_stage.stage.output_columns import OutputColumns
from nemo_llm_stage.stage.stage import Stage


@dataclass(frozen=True)
class Asked:
    """
    Rows of which some or all are asked.

    Attributes:
        table: All of them.
        input: Those that are asked, with the columns of the input.
        places: Where those stand in `table`; rising. None for all.
        known: For each of those, the results of the columns that are not asked; None where all are.
        errors: For each of those, what it had failed with: output column → error.
    """

    table: pa.Table
    input: pa.Table
    places: Sequence[int] | None = None
    known: Sequence[Known] | None = None
    errors: Sequence[Mapping[str, str | None]] = ()


class FailedRows:
    """
    Tells which columns of which rows are asked again.

    Those that failed with one of `kinds`, and those with an error that use them, also by way of others. A skipped
    column has not failed.

    Args:
        stage: Wrote the rows.
        kinds: None for all.
    """

    def __init__(self, stage: Stage, kinds: Collection[str] | None) -> None:
        self._columns = stage.columns
        self._outputs = [OutputColumns(column) for column in stage.columns]
        self._uses = stage.uses
        self._kinds = kinds

    def of(self, table: pa.Table, input_columns: Sequence[str]) -> Asked:
        """Return `table`, committed rows, with those of its rows that are asked again."""
        names = list(self._uses)
        columns = [table.column(f"{name}_error").to_pylist() for name in names]
        rows = [dict(zip(names, errors, strict=True)) for errors in zip(*columns, strict=True)]
        again = [self._asked_again(errors) for errors in rows]
        places = [place for place, columns in enumerate(again) if columns]
        failed = table.take(pa.array(places, pa.int64()))
        known = [
            {output.name: output.result_of(row) for output in self._outputs if output.name not in again[place]}
            for place, row in zip(places, failed.select(self._answer_columns()).to_pylist(), strict=True)
        ]
        return Asked(table, failed.select(input_columns), places, known, [rows[place] for place in places])

    def _answer_columns(self) -> list[str]:
        errors = [f"{column.name}_error" for column in self._columns]
        return [*errors, *(name for column in self._columns for name in column.answers)]

    def _asked_again(self, errors: Mapping[str, str | None]) -> set[str]:
        again = {name for name, error in errors.items() if error is not None and self._is_failure(error)}
        while True:
            more = {
                name for name, used in self._uses.items() if errors[name] is not None and not again.isdisjoint(used)
            }
            if more <= again:
                return again
            again |= more

    def _is_failure(self, error: str) -> bool:
        kind = error.partition(":")[0]
        return kind != SkippedError.kind if self._kinds is None else kind in self._kinds


def put_back(asked: Asked, answered: Extended, columns: Sequence[Column]) -> pa.Table:
    """
    Return `asked.table` with the rows that were asked again replaced by what they have come to.

    Args:
        asked: From `FailedRows.of`.
        answered: Of `asked.input`: no row where it was dropped, several where its answers have a row each.
        columns: The stage's. Columns that were not asked keep what was committed.
    """
    table, places, known = asked.table, asked.places or (), asked.known or ()
    committed = table.take(pa.array([places[row] for row in answered.rows], pa.int64()))
    arrays = {name: committed.column(name) for name in table.schema.names}
    for column in columns:
        is_kept = [column.name in known[row] for row in answered.rows]
        for field in OutputColumns(column).fields:
            arrays[field.name] = _choose(is_kept, committed.column(field.name), answered.table.column(field.name))
    new_places: dict[int, list[int]] = {place: [] for place in places}
    for index, row in enumerate(answered.rows):
        new_places[places[row]].append(table.num_rows + index)
    order = [new for place in range(table.num_rows) for new in new_places.get(place, [place])]
    return pa.concat_tables([table, pa.table(arrays, schema=table.schema)]).take(pa.array(order, pa.int64()))


def _choose(is_first: Sequence[bool], first: pa.ChunkedArray, second: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return for each row the value of the one column or of the other."""
    if not any(is_first):
        return second
    indices = [row if one else len(first) + row for row, one in enumerate(is_first)]
    return pa.chunked_array([*first.chunks, *second.chunks]).take(pa.array(indices, pa.int64()))


def to_columns(rows: Sequence[Mapping[str, Any]], fields: Sequence[pa.Field]) -> list[pa.Array]:
    """Return the values that `rows`, read from JSON, have for `fields`, in their types."""
    return [_to_array([row[field.name] for row in rows], field.type) for field in fields]


def _to_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    values = [_from_json(value, kind) for value in values]
    try:
        return pa.array(values, type=kind)
    except (pa.ArrowException, TypeError):  # e.g. a date, which JSON has as text
        return pa.array(values, type=pa.string()).cast(kind)


def _from_json(value: Any, kind: pa.DataType) -> Any:
    """Return a value with its bytes, which JSON has as Base64."""
    if value is None:
        return None
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return base64.b64decode(value)
    if pa.types.is_struct(kind):
        return {field.name: _from_json(value.get(field.name), field.type) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_from_json(item, kind.value_type) for item in value]
    return value
