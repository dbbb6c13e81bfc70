"""
The failed rows of a committed table: selected to be retried, and merged back.

Knows tables, and which columns use which; knows nothing of files, and sends nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from nemo_llm_stage.errors import SkippedError
from nemo_llm_stage.stage.extend import Extended
from nemo_llm_stage.stage.output_columns import OutputColumns
from nemo_llm_stage.stage.stage import Stage
from nemo_llm_stage.worker.chunk import Chunk


class FailedRows:
    """
    Selects the columns of rows that are retried.

    A column is retried if it failed with one of `kinds`, or if it has an error and depends, directly or not, on a
    retried column. A skipped column has not failed.

    Args:
        stage: The stage that wrote the rows.
        kinds: Kinds of failure; None for all.
    """

    def __init__(self, stage: Stage, kinds: Collection[str] | None) -> None:
        self._columns = stage.columns
        self._outputs = stage.outputs
        self._uses = stage.uses
        self._kinds = kinds

    def select(self, table: pa.Table, input_columns: Sequence[str]) -> Chunk:
        """Return a chunk of committed rows in which only the rows to retry are run."""
        reasons = table.select([reason for output in self._outputs for reason in output.reasons])
        rows = [{output.name: output.error_of(row) for output in self._outputs} for row in reasons.to_pylist()]
        retried = [self._retried(errors) for errors in rows]
        places = [place for place, columns in enumerate(retried) if columns]
        failed = table.take(pa.array(places, pa.int64()))
        known = [
            {output.name: output.result_of(row) for output in self._outputs if output.name not in retried[place]}
            for place, row in zip(places, failed.select(self._answer_columns()).to_pylist(), strict=True)
        ]
        return Chunk(table, failed.select(input_columns), places, known, [rows[place] for place in places])

    def _answer_columns(self) -> list[str]:
        reasons = [reason for output in self._outputs for reason in output.reasons]
        return [*reasons, *(name for column in self._columns for name in column.answers)]

    def _retried(self, errors: Mapping[str, str | None]) -> set[str]:
        """Return the columns of a row that are retried."""
        retried = {name for name, error in errors.items() if error is not None and self._is_failure(error)}
        while True:
            more = {
                name for name, used in self._uses.items() if errors[name] is not None and not retried.isdisjoint(used)
            }
            if more <= retried:
                return retried
            retried |= more

    def _is_failure(self, error: str) -> bool:
        kind = error.partition(":")[0]
        return kind != SkippedError.kind if self._kinds is None else kind in self._kinds


def merge_retried(chunk: Chunk, extended: Extended, outputs: Sequence[OutputColumns]) -> pa.Table:
    """
    Return `chunk.table` with the retried rows replaced by their new results.

    Args:
        chunk: From `FailedRows.select`.
        extended: Made from `chunk.input`: no row where a row was dropped, several where its answers have a row each.
        outputs: The stage's columns. Columns that were not retried keep what was committed.
    """
    table, places, known = chunk.table, chunk.places or (), chunk.known or ()
    committed = table.take(pa.array([places[row] for row in extended.rows], pa.int64()))
    arrays = {name: committed.column(name) for name in table.schema.names}
    for output in outputs:
        is_kept = [output.name in known[row] for row in extended.rows]
        for field in output.fields:
            arrays[field.name] = _choose(is_kept, committed.column(field.name), extended.table.column(field.name))
    new_places: dict[int, list[int]] = {place: [] for place in places}
    for index, row in enumerate(extended.rows):
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
