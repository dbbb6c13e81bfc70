"""
Results become typed Arrow columns: the answer, its error, and what is known of the request.

Types are declared, never inferred: a column of nulls has the same type in every file. Knows nothing of prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from nemo_llm_stage.core import RowResult
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
    The columns that one stage adds. Immutable, can be pickled.

    Args:
        name: X.
        value_type: Of one answer's value.
        is_list: Whether a row has several answers; X is then a list of them.
        by_field: Whether a struct's fields are columns of their own, ``X_field``, in place of X.
        has_reasoning: Whether there is ``X_reasoning``.
        has_meta: Whether there is ``X_meta``.

    Attributes:
        fields: In writing order: X or its fields, ``X_error`` and, if asked for, ``X_reasoning`` and ``X_meta``.

    Raises:
        ConfigError: `by_field` without a struct, or a field whose column would be another one's.
    """

    def __init__(
        self,
        name: str,
        value_type: pa.DataType,
        *,
        is_list: bool,
        by_field: bool,
        has_reasoning: bool,
        has_meta: bool,
    ) -> None:
        self._value_type = pa.list_(value_type) if is_list else value_type
        self._is_list = is_list
        self._by_field = by_field
        self._has_reasoning = has_reasoning
        self._has_meta = has_meta
        fields = [pa.field(name, self._value_type)]
        if by_field:
            if not pa.types.is_struct(value_type):
                raise ConfigError(f"field_columns needs an answer with fields; {name} is {value_type}.")
            kinds = [(field.name, pa.list_(field.type) if is_list else field.type) for field in value_type]
            fields = [pa.field(f"{name}_{field}", kind) for field, kind in kinds]
        fields.append(pa.field(f"{name}_error", pa.string()))
        if has_reasoning:
            fields.append(pa.field(f"{name}_reasoning", pa.list_(pa.string()) if is_list else pa.string()))
        if has_meta:
            fields.append(pa.field(f"{name}_meta", META_TYPE))
        self.fields = fields
        names = [field.name for field in fields]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"there would be two columns {twice[0]!r}; rename that field of the answer.")

    def arrays(self, results: Sequence[RowResult]) -> list[pa.Array]:
        """Return one array for each of `fields`. A value that does not fit the type fails its row."""
        try:
            values = pa.array([result.value for result in results], type=self._value_type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            results = [self._fitting(result) for result in results]
            values = pa.array([result.value for result in results], type=self._value_type)
        arrays = self._split(values) if self._by_field else [values]
        arrays.append(pa.array([result.error for result in results], type=pa.string()))
        if self._has_reasoning:
            thoughts = [self._reasoning_of(result) for result in results]
            arrays.append(pa.array(thoughts, type=self.fields[len(arrays)].type))
        if self._has_meta:
            arrays.append(_meta_array(results))
        return arrays

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
