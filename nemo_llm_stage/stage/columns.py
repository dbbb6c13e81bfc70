"""
Results become typed Arrow columns: the answer, its error, and what is known of the request.

Types are declared, never inferred: a column of nulls has the same type in every file. Knows nothing of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from nemo_llm_stage.core import Completion, RowResult

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
    ]
)
"""Of the ``X_meta`` column. ``finish_reason`` is the one of the choice, or for n > 1 all of them joined by commas."""


def output_fields(output_column: str, value_type: pa.DataType, *, has_meta: bool) -> list[pa.Field]:
    """Return the fields of one output column, in writing order: ``X``, ``X_error`` and, if asked for, ``X_meta``."""
    fields = [pa.field(output_column, value_type), pa.field(f"{output_column}_error", pa.string())]
    if has_meta:
        fields.append(pa.field(f"{output_column}_meta", META_TYPE))
    return fields


def output_arrays(results: Sequence[RowResult], fields: Sequence[pa.Field]) -> list[pa.Array]:
    """
    Return one array for each of `fields`, in the order of `results`.

    Raises:
        pyarrow.ArrowException: A parser returned values that do not fit the declared type; `misfit` finds the rows.
    """
    arrays = [
        pa.array([result.value for result in results], type=fields[0].type),
        pa.array([result.error for result in results], type=pa.string()),
    ]
    if len(fields) > len(arrays):
        arrays.append(_meta_array(results))
    return arrays


def fitting(result: RowResult, value_type: pa.DataType) -> RowResult:
    """Return `result`, or a failed one that says why its value does not fit `value_type`."""
    try:
        pa.array([result.value], type=value_type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        text = f"parse: the value does not fit the column's type {value_type}: {error}"
        return RowResult(None, text, result.completion, result.attempts, result.origin)
    return result


def _meta_array(results: Sequence[RowResult]) -> pa.Array:
    columns: list[list[Any]] = [[] for _ in META_TYPE]
    for result in results:
        for column, value in zip(columns, _meta_values(result.completion, result.attempts), strict=True):
            column.append(value)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, META_TYPE, strict=True)]
    return pa.StructArray.from_arrays(arrays, fields=list(META_TYPE))


def _meta_values(completion: Completion | None, attempts: int) -> tuple[Any, ...]:
    if completion is None:
        return (None, attempts, None, None, None, None, None, None)
    usage = completion.usage
    reasons = completion.finish_reasons
    return (
        reasons[0] if len(reasons) == 1 else ",".join(str(reason) for reason in reasons) or None,
        completion.attempts,
        usage.input_tokens if usage else None,
        usage.cached_tokens if usage else None,
        usage.output_tokens if usage else None,
        completion.latency_s,
        completion.model,
        completion.endpoint,
    )
