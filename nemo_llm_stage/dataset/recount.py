"""
The counts of a partition, from its rows alone.

Knows rows as they were written, and the job's record; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nemo_llm_stage.core import Completion, RowResult, Usage
from nemo_llm_stage.counters import Counters


def output_columns_of(job: Mapping[str, Any]) -> list[str]:
    """Return the names of the generated columns, without the ones beside them, that a job's record tells."""
    stage = job["stage"]
    return list(stage["columns"]) if "columns" in stage else [stage["output_column"]]


def explodes(job: Mapping[str, Any]) -> bool:
    """Whether a job gives each of a row's answers a row of its own."""
    return bool(job["stage"].get("explode"))


def recount(rows: Iterable[Mapping[str, Any]], job: Mapping[str, Any], number: int, num_left_out: int) -> Counters:
    """
    Count a partition by its rows; tokens and attempts as far as the meta columns have them.

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
            counters.count({column: _result_of(row, column) for column in columns})
    if job["stage"].get("keep_if"):
        num_rows = job["partitions"][number][3]
        if num_rows is not None:  # dropped rows have left nothing behind
            counters.num_dropped = max(0, num_rows - num_left_out - counters.num_rows)
            counters.num_rows += counters.num_dropped
    return counters


def _result_of(row: Mapping[str, Any], column: str) -> RowResult:
    meta = row.get(f"{column}_meta") or {}
    usage = Usage(meta.get("input_tokens"), meta.get("output_tokens"), meta.get("cached_tokens"))
    reasons = tuple((meta.get("finish_reason") or "").split(","))
    completion = Completion(texts=(), finish_reasons=reasons, usage=usage)
    return RowResult(None, row[f"{column}_error"], completion, meta.get("attempts") or 0)
