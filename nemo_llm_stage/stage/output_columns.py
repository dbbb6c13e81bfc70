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
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.output import split_reasoning

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

``finish_reason`` is the one of the answer, or for n > 1 all of them joined by commas. Tokens are those of all answers
to the row, unusable ones included; ``latency_s`` is the last one's. ``recovery`` tells what was done beyond asking
once, joined by ``+``; ``raw`` is the answer of a row that failed, for n > 1 a JSON list.
"""


class OutputColumns:
    """
    The columns that one prompt's answers make. Immutable, can be pickled.

    Args:
        name: X.
        value_type: Of one answer's value.
        is_list: Whether a row has several answers; X is then a list of them.
        is_exploded: Whether each of several answers becomes a row of its own, with its number in ``X_choice``.
        by_field: Whether a struct's fields are columns of their own, ``X_field``, in place of X.
        has_reasoning: Whether there is ``X_reasoning``.
        has_meta: Whether there is ``X_meta``.

    Attributes:
        fields: In writing order: X or its fields, ``X_choice`` if exploded, ``X_error`` and, if asked for,
            ``X_reasoning`` and ``X_meta``.
        answers: Names of those fields that later prompts and `keep_if` may use.

    Raises:
        ConfigError: `by_field` without a struct, or a field whose column would be another one's.
    """

    def __init__(
        self,
        name: str,
        value_type: pa.DataType,
        *,
        is_list: bool,
        is_exploded: bool,
        by_field: bool,
        has_reasoning: bool,
        has_meta: bool,
    ) -> None:
        if is_exploded and not is_list:
            raise ConfigError("explode is for several answers a row; set n in generation_config above 1.")
        if by_field and not pa.types.is_struct(value_type):
            raise ConfigError(f"field_columns needs an answer with fields; {name} is {value_type}.")
        self._name = name
        self._value_type = pa.list_(value_type) if is_list else value_type
        self._is_list = is_list
        self._is_exploded = is_exploded
        self._by_field = by_field
        self._has_reasoning = has_reasoning
        self._has_meta = has_meta
        is_written_as_list = is_list and not is_exploded
        parts = [(f"{name}_{part.name}", part.type) for part in value_type] if by_field else [(name, value_type)]
        reasoning = [(f"{name}_reasoning", pa.string())] if has_reasoning else []
        self.fields = [
            *_fields(parts, is_list=is_written_as_list),
            *([pa.field(f"{name}_choice", pa.int32())] if is_exploded else []),
            pa.field(f"{name}_error", pa.string()),
            *_fields(reasoning, is_list=is_written_as_list),
            *([pa.field(f"{name}_meta", META_TYPE)] if has_meta else []),
        ]
        self.answers = tuple(part for part, _ in (*parts, *reasoning))
        names = [field.name for field in self.fields]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"there would be two columns {twice[0]!r}; rename that field of the answer.")

    def arrays(self, results: Sequence[RowResult]) -> tuple[list[pa.Array], list[int]]:
        """
        Return one array for each of `fields`, and the index of the result that each of their rows comes from.

        A value that does not fit the type fails its row.
        """
        try:
            values = pa.array([result.value for result in results], type=self._value_type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            results = [self._fitting(result) for result in results]
            values = pa.array([result.value for result in results], type=self._value_type)
        answers = self._split(values) if self._by_field else [values]
        rows = list(range(len(results)))
        choices: list[int | None] = []
        if self._is_exploded:
            nums = [0 if result.value is None else len(result.value) for result in results]
            rows = [row for row, num in enumerate(nums) for _ in range(max(1, num))]
            choices = [choice for num in nums for choice in (range(num) if num else (None,))]
            answers = [_explode(answer, rows, choices) for answer in answers]
            results = [results[row] for row in rows]
        columns = [*answers, *([pa.array(choices, pa.int32())] if self._is_exploded else [])]
        columns.append(pa.array([result.error for result in results], type=pa.string()))
        if self._has_reasoning:
            thoughts = [self._reasoning_of(result) for result in results]
            if self._is_exploded:
                thoughts = [_item(thought, choice) for thought, choice in zip(thoughts, choices, strict=True)]
            columns.append(pa.array(thoughts, type=self.fields[len(columns)].type))
        if self._has_meta:
            columns.append(_meta_array(results))
        return columns, rows

    def values(self, result: RowResult) -> dict[str, Any]:
        """Return what later prompts and `keep_if` see of a result: name → value, for each of `answers`."""
        if not self._by_field:
            values = {self._name: result.value}
        elif self._is_list:
            items = result.value or ()
            values = {name: [item.get(self._part(name)) for item in items] for name in self._part_names()}
        else:
            values = {name: (result.value or {}).get(self._part(name)) for name in self._part_names()}
        if self._has_reasoning:
            values[self.answers[-1]] = self._reasoning_of(result)
        return values

    def result_of(self, row: Mapping[str, Any]) -> RowResult:
        """Return the result that a finished row, as it was written, holds: its value, its error and its thinking."""
        error = row[f"{self._name}_error"]
        thoughts = row[f"{self._name}_reasoning"] if self._has_reasoning else None
        if thoughts is None:
            return RowResult(self._value_of(row), error)
        thoughts = tuple(thoughts) if self._is_list else (thoughts,)
        return RowResult(self._value_of(row), error, Completion(("",) * len(thoughts), reasoning=thoughts))

    def _value_of(self, row: Mapping[str, Any]) -> Any:
        if not self._by_field:
            return row[self._name]
        parts = {self._part(name): row[name] for name in self._part_names()}
        if not self._is_list:
            return parts
        if any(items is None for items in parts.values()):
            return None
        return [dict(zip(parts, items, strict=True)) for items in zip(*parts.values(), strict=True)]

    def _part_names(self) -> tuple[str, ...]:
        return self.answers[:-1] if self._has_reasoning else self.answers

    def _part(self, name: str) -> str:
        return name.removeprefix(f"{self._name}_")

    def _split(self, values: pa.Array) -> list[pa.Array]:
        """Return the values' fields; null where the value is."""
        if not self._is_list:
            return list(values.flatten())
        mask = values.is_null()
        return [pa.ListArray.from_arrays(values.offsets, field, mask=mask) for field in values.values.flatten()]

    def _fitting(self, result: RowResult) -> RowResult:
        try:
            pa.array([result.value], type=self._value_type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            text = f"parse: the value does not fit the column's type {self._value_type}: {error}"
            return replace(result, value=None, error=text)
        return result

    def _reasoning_of(self, result: RowResult) -> Any:
        completion = result.completion
        if completion is None:
            return None
        known = completion.reasoning or (None,) * len(completion.texts)
        pairs = zip(known, completion.texts, strict=True)
        thoughts = [_encodable(thinking or split_reasoning(text)[0]) for thinking, text in pairs]
        return thoughts if self._is_list else thoughts[0]


def _fields(parts: Sequence[tuple[str, pa.DataType]], *, is_list: bool) -> list[pa.Field]:
    return [pa.field(name, pa.list_(kind) if is_list else kind) for name, kind in parts]


def _explode(lists: pa.ListArray, rows: Sequence[int], choices: Sequence[int | None]) -> pa.Array:
    """Return the item that each of `choices` names in the list of its row; null for no choice."""
    offsets = lists.offsets.to_pylist()
    places = [None if choice is None else offsets[row] + choice for row, choice in zip(rows, choices, strict=True)]
    return lists.values.take(pa.array(places, pa.int64()))


def _item(items: Sequence[Any] | None, choice: int | None) -> Any:
    return items[choice or 0] if items else None


def _meta_array(results: Sequence[RowResult]) -> pa.Array:
    columns = zip(*map(_meta_values, results), strict=True) if results else [()] * len(META_TYPE)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, META_TYPE, strict=True)]
    return pa.StructArray.from_arrays(arrays, fields=list(META_TYPE))


def _meta_values(result: RowResult) -> tuple[Any, ...]:
    completion = result.completion
    if completion is None:
        return (None, result.attempts, None, None, None, None, None, None, result.recovery, None)
    usage = result.usage
    reasons = completion.finish_reasons
    return (
        reasons[0] if len(reasons) == 1 else ",".join(str(reason) for reason in reasons) or None,
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


def _raw(texts: Sequence[str]) -> Any:
    return _encodable(texts[0] if len(texts) == 1 else json.dumps(texts, ensure_ascii=False))


def _encodable(text: str | None) -> Any:
    """The text with half a surrogate pair, which Arrow cannot hold, made a ``?``."""
    return text if text is None or text.isascii() else text.encode("utf-8", "replace").decode()
