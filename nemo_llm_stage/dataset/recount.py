"""
Counts a partition from the rows that were written.

Knows written rows and the job's record; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nemo_llm_stage.core import Completion, RowResult, Usage
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.errors import SkippedError

FIRST_VERSION_WITH_SKIPPED = 3
"""Version of a job's record from which on an output has a column ``X_skipped``."""


def output_columns_of(job: Mapping[str, Any]) -> list[str]:
    """Return the names of a job's generated columns, without ``X_error`` and the like."""
    stage = job["stage"]
    return list(stage["columns"]) if "columns" in stage else [stage["output_column"]]


def explodes(job: Mapping[str, Any]) -> bool:
    """Whether each answer of a row is written as a row of its own."""
    return bool(job["stage"].get("explode"))


def reasons_of(job: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """Return the names of the columns that say why `column` is null: first of a failure, then of a skip."""
    return (f"{column}_error",) if skips_are_errors(job) else (f"{column}_error", f"{column}_skipped")


def skips_are_errors(job: Mapping[str, Any]) -> bool:
    """Whether the error column of a job's output also says why rows were skipped, as in older versions."""
    return bool(job.get("format_version", 0) < FIRST_VERSION_WITH_SKIPPED)


def recount(rows: Iterable[Mapping[str, Any]], job: Mapping[str, Any], number: int, num_left_out: int) -> Counters:
    """
    Count a partition from its rows. Tokens and attempts come from the meta columns; without these they are 0.

    Args:
        rows: As they were written.
        job: Its record.
        number: The partition's, from 0.
        num_left_out: Rows of its input that could not be read.
    """
    columns = output_columns_of(job)
    counters = Counters(num_left_out=num_left_out)
    for row in rows:
        counters.num_written += 1
        if all(row.get(f"{column}_choice") in (0, None) for column in columns):  # the others are of the same row
            counters.count({column: _result_of(row, column, job) for column in columns})
    if job["stage"].get("keep_if"):
        num_rows = job["partitions"][number][3]
        if num_rows is not None:  # dropped rows have left nothing behind
            counters.num_dropped = max(0, num_rows - num_left_out - counters.num_rows)
            counters.num_rows += counters.num_dropped
    return counters


def error_of(row: Mapping[str, Any], column: str, job: Mapping[str, Any]) -> str | None:
    """Return why `column` is null in a written row, as ``kind: message``; None where it is not."""
    error: str | None = row[f"{column}_error"]
    skipped = None if skips_are_errors(job) else row[f"{column}_skipped"]
    return error if skipped is None else f"{SkippedError.kind}: {skipped}"


def _result_of(row: Mapping[str, Any], column: str, job: Mapping[str, Any]) -> RowResult:
    meta = row.get(f"{column}_meta") or {}
    usage = Usage(meta.get("input_tokens"), meta.get("output_tokens"), meta.get("cached_tokens"))
    reasons = tuple((meta.get("finish_reason") or "").split(","))
    completion = Completion(texts=(), finish_reasons=reasons, usage=usage)
    return RowResult(None, error_of(row, column, job), completion, meta.get("attempts") or 0)
