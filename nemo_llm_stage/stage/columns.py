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


def output_fields(
    output_column: str, value_type: pa.DataType, *, is_list: bool, has_reasoning: bool, has_meta: bool
) -> list[pa.Field]:
    """
    Return the fields of one output column, in writing order: ``X``, ``X_error`` and, if asked for, the others.

    Args:
        output_column: X.
        value_type: Of one answer's value.
        is_list: Whether a row has several answers.
        has_reasoning: Whether there is ``X_reasoning``.
        has_meta: Whether there is ``X_meta``.
    """
    types = [(output_column, value_type), (f"{output_column}_reasoning", pa.string())]
    fields = [pa.field(name, pa.list_(of) if is_list else of) for name, of in types[: 2 if has_reasoning else 1]]
    fields.insert(1, pa.field(f"{output_column}_error", pa.string()))
    if has_meta:
        fields.append(pa.field(f"{output_column}_meta", META_TYPE))
    return fields


def output_arrays(results: Sequence[RowResult], fields: Sequence[pa.Field]) -> list[pa.Array]:
    """
    Return one array for each of `fields`, in the order of `results`.

    Raises:
        pyarrow.ArrowException: A parser returned values that do not fit the declared type; `fitting` finds the rows.
    """
    arrays = [
        pa.array([result.value for result in results], type=fields[0].type),
        pa.array([result.error for result in results], type=pa.string()),
    ]
    for field in fields[len(arrays) :]:
        if field.type == META_TYPE:
            arrays.append(_meta_array(results))
        else:
            arrays.append(pa.array([_reasoning_of(result, field.type) for result in results], type=field.type))
    return arrays


def fitting(result: RowResult, value_type: pa.DataType) -> RowResult:
    """Return `result`, or a failed one that says why its value does not fit `value_type`."""
    try:
        pa.array([result.value], type=value_type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        text = f"parse: the value does not fit the column's type {value_type}: {error}"
        return replace(result, value=None, error=text)
    return result


def _reasoning_of(result: RowResult, arrow_type: pa.DataType) -> Any:
    completion = result.completion
    if completion is None:
        return None
    known = completion.reasoning or (None,) * len(completion.texts)
    pairs = zip(known, completion.texts, strict=True)
    thoughts = [_encodable(thinking or split_reasoning(text)[0]) for thinking, text in pairs]
    return thoughts if pa.types.is_list(arrow_type) else thoughts[0]


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
