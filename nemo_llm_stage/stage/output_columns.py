"""
Results become typed Arrow columns: the answer, its error, and what is known of the request.

Types are declared, never inferred: a column of nulls has the same type in every file. Knows nothing of prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from nemo_llm_stage.core import Completion, RowResult
from nemo_llm_stage.errors import ConfigError, ParseError, SkippedError
from nemo_llm_stage.rows.column import Column
from nemo_llm_stage.stage.arrays import array_of
from nemo_llm_stage.text import encodable

META_TYPE = pa.struct(
    [
        ("finish_reason", pa.string()),
        ("attempts", pa.int32()),
        ("input_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("latency_s", pa.float64()),
        ("model", pa.string()),
        ("endpoint", pa.string()),
        ("recovery", pa.string()),
        ("raw", pa.string()),
    ]
)
"""
Of the ``X_meta`` column: what is known of the row's requests.

``finish_reason`` is the one of the answer; for n > 1 all of them, joined by commas. Tokens are those of all answers to
the row, unusable ones included; ``latency_s`` is the last one's. ``recovery`` names the steps taken after the first
request, joined by ``+``: ``single_choices`` where the server left answers out and they were fetched one by one,
``lost_choices`` where exploded answers have no row because they are null. ``raw`` is the answer of a row that failed,
for n > 1 a JSON list.
"""

_SKIPPED = f"{SkippedError.kind}: "

_MISFITS = (pa.ArrowException, TypeError, ValueError, OverflowError)
"""Raised by Arrow where a value does not fit a type."""


class OutputColumns:
    """
    The Arrow columns that one generated column is written as. Immutable, can be pickled.

    Args:
        column: Its definition; X is its name.
        skips_are_errors: Whether ``X_error`` also says why a row was skipped, as outputs of older versions have it.

    Attributes:
        name: X.
        fields: In writing order: X or its fields, ``X_choice`` if exploded, ``X_error``, ``X_skipped`` and, where they
            are wanted, ``X_reasoning`` and ``X_meta``.
        reasons: The names of the columns that say why X is null.

    Raises:
        ConfigError: A field of the answer would have the same column as something else.
    """

    def __init__(self, column: Column, *, skips_are_errors: bool = False) -> None:
        self.name = name = column.name
        self.reasons = (f"{name}_error",) if skips_are_errors else (f"{name}_error", f"{name}_skipped")
        self._column = column
        value_type = column.output.arrow_type
        self._value_type = pa.list_(value_type) if column.is_list else value_type
        self._is_written_as_list = column.is_list and not column.explode
        types = {field.name: field.type for field in value_type} if column.field_columns else {}
        answers = [(written, types[part]) for written, part in column.parts.items()] or [(name, value_type)]
        self.fields = [
            *self._fields(answers),
            *([pa.field(f"{name}_choice", pa.int32())] if column.explode else []),
            *(pa.field(reason, pa.string()) for reason in self.reasons),
            *self._fields([(f"{name}_reasoning", pa.string())] if column.reasoning_column else []),
            *([pa.field(f"{name}_meta", META_TYPE)] if column.has_meta else []),
        ]
        names = [field.name for field in self.fields]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"there would be two columns {twice[0]!r}; rename that field of the answer.")

    def arrays(self, results: Sequence[RowResult]) -> tuple[list[pa.Array], list[int]]:
        """
        Return one array for each of `fields`, and the index of the result that each of their rows comes from.

        A value that does not fit the type fails its row.
        """
        try:
            values = array_of([result.value for result in results], self._value_type)
        except _MISFITS:
            results = [self._fitting(result) for result in results]
            values = array_of([result.value for result in results], self._value_type)
        column = self._column
        answers = self._split(values) if column.field_columns else [values]
        rows = list(range(len(results)))
        choices: list[int | None] = []
        if column.explode:
            places = [(row, choice) for row, result in enumerate(results) for choice in _answered(result)]
            rows = [row for row, _ in places]
            choices = [choice for _, choice in places]
            answers = [_explode(answer, rows, choices) for answer in answers]
            results = [results[row] for row in rows]
        columns = [*answers, *([array_of(choices, pa.int32())] if column.explode else [])]
        columns += self._reasons_of(results)
        if column.reasoning_column:
            thoughts = [column.reasoning_of(result) for result in results]
            if column.explode:
                thoughts = [_item(thought, choice) for thought, choice in zip(thoughts, choices, strict=True)]
            columns.append(array_of(thoughts, self.fields[len(columns)].type))
        if column.has_meta:
            columns.append(_meta_array(results))
        return columns, rows

    def error_of(self, row: Mapping[str, Any]) -> str | None:
        """Return why a written row has no value, as `RowResult.error` says it; None where it has one."""
        error: str | None = row[f"{self.name}_error"]
        skipped = row[self.reasons[-1]]
        return error if error is not None or skipped is None else f"{_SKIPPED}{skipped}"

    def result_of(self, row: Mapping[str, Any]) -> RowResult:
        """Return the result that a written row holds: its value, its error and its thinking."""
        error = self.error_of(row)
        thoughts = row[f"{self.name}_reasoning"] if self._column.reasoning_column else None
        if thoughts is None:
            return RowResult(self._value_of(row), error)
        thoughts = tuple(thoughts) if self._column.is_list else (thoughts,)
        return RowResult(self._value_of(row), error, Completion(("",) * len(thoughts), reasoning=thoughts))

    def _value_of(self, row: Mapping[str, Any]) -> Any:
        if not self._column.field_columns:
            return row[self.name]
        parts = {part: row[name] for name, part in self._column.parts.items()}
        if not self._column.is_list:
            return parts
        if any(items is None for items in parts.values()):
            return None
        return [dict(zip(parts, items, strict=True)) for items in zip(*parts.values(), strict=True)]

    def _reasons_of(self, results: Sequence[RowResult]) -> list[pa.Array]:
        errors = [result.error and encodable(result.error) for result in results]
        if len(self.reasons) == 1:
            return [array_of(errors, pa.string())]
        skips: list[str | None] = [None] * len(errors)
        for place, error in enumerate(errors):
            if error is not None and error.startswith(_SKIPPED):
                errors[place], skips[place] = None, error.removeprefix(_SKIPPED)
        return [array_of(errors, pa.string()), array_of(skips, pa.string())]

    def _fields(self, parts: Sequence[tuple[str, pa.DataType]]) -> list[pa.Field]:
        return [pa.field(name, pa.list_(kind) if self._is_written_as_list else kind) for name, kind in parts]

    def _split(self, values: pa.Array) -> list[pa.Array]:
        """Return the values' fields; null where the value is."""
        if not self._column.is_list:
            return list(values.flatten())
        mask = values.is_null()
        return [pa.ListArray.from_arrays(values.offsets, field, mask=mask) for field in values.values.flatten()]

    def _fitting(self, result: RowResult) -> RowResult:
        try:
            pa.array([result.value], type=self._value_type)
        except _MISFITS as error:
            text = f"{ParseError.kind}: the value does not fit the column's type {self._value_type}: {error}"
            return replace(result, value=None, error=text)
        return result


def _explode(lists: pa.ListArray, rows: Sequence[int], choices: Sequence[int | None]) -> pa.Array:
    """Return the item that each of `choices` names in the list of its row; null for no choice."""
    offsets = lists.offsets.to_pylist()
    places = [None if choice is None else offsets[row] + choice for row, choice in zip(rows, choices, strict=True)]
    return lists.values.take(pa.array(places, pa.int64()))


def _answered(result: RowResult) -> Sequence[int | None]:
    """Return the choices that have a row: those without an error, or a single None where the row has failed."""
    if result.value is None or result.completion is None:
        return [None]
    return [choice for choice in range(len(result.value)) if result.completion.error_of(choice) is None]


def _item(items: Sequence[Any] | None, choice: int | None) -> Any:
    return items[choice or 0] if items else None


def _meta_array(results: Sequence[RowResult]) -> pa.Array:
    columns = zip(*map(_meta_values, results), strict=True) if results else [()] * len(META_TYPE)
    arrays = [_array(column, field.type) for column, field in zip(columns, META_TYPE, strict=True)]
    return pa.StructArray.from_arrays(arrays, fields=list(META_TYPE))


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """
    Return the values as an array; null where a client's value does not fit, e.g. a count beyond 64 bits.

    A text that UTF-8 does not have becomes one that it has.
    """
    try:
        return array_of(values, kind)
    except _MISFITS:
        return array_of([_fitted(value, kind) for value in values], kind)


def _fitted(value: Any, kind: pa.DataType) -> Any:
    value = encodable(value) if isinstance(value, str) else value
    try:
        pa.scalar(value, type=kind)
    except _MISFITS:
        return None
    return value


def _meta_values(result: RowResult) -> tuple[Any, ...]:
    completion = result.completion
    if completion is None:
        return (None, result.attempts, None, None, None, None, None, None, result.recovery, None)
    usage = result.usage
    reasons = completion.finish_reasons
    return (
        reasons[0] if len(reasons) == 1 else ",".join(map(str, reasons)) or None,
        result.attempts,
        usage.input_tokens if usage else None,
        usage.cached_tokens if usage else None,
        usage.output_tokens if usage else None,
        completion.latency_s,
        completion.model,
        completion.endpoint,
        result.recovery,
        None if result.error is None else _raw(completion.texts),
    )


def _raw(texts: Sequence[str]) -> str:
    return encodable(texts[0] if len(texts) == 1 else json.dumps(texts, ensure_ascii=False))
