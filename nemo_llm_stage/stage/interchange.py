"""
Tables of other libraries become Arrow tables, and results become the caller's kind of table again.

Uses the Arrow PyCapsule protocol; imports none of the libraries. Knows nothing of prompts or clients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from nemo_llm_stage.errors import InputError
from nemo_llm_stage.stage.table import is_table


def from_any(table: Any) -> tuple[Any, Callable[[Any], Any]]:
    """
    Return `table` as a pandas DataFrame or Arrow table, and a function that converts a result back.

    pandas DataFrames, Arrow tables and record batches pass through. A polars DataFrame, a `datasets.Dataset`, a DuckDB
    relation and a RecordBatchReader come back as what they were; a result for any other object with
    ``__arrow_c_stream__`` is an Arrow table. A reader is read to its end.

    Raises:
        InputError: It is none of these.
    """
    if is_table(table):
        return table, _itself
    library = type(table).__module__.partition(".")[0]
    if library == "datasets" and hasattr(table, "with_format"):
        return table.with_format("arrow")[:], lambda result: _dataset(table, result)
    if not hasattr(table, "__arrow_c_stream__"):
        raise InputError(
            "process() takes a pandas or polars DataFrame, an Arrow table, a datasets.Dataset, a DuckDB relation, or "
            f"any object with __arrow_c_stream__, not {type(table).__name__}."
        )
    try:
        arrow = pa.table(table)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(f"the {type(table).__name__} holds no table of columns: {error}") from error
    if isinstance(table, pa.RecordBatchReader):
        return arrow, pa.Table.to_reader
    if library == "polars":
        return arrow, type(table)
    if library in {"duckdb", "_duckdb"}:
        return arrow, sys.modules["duckdb"].from_arrow
    return arrow, _itself


def _itself(result: Any) -> Any:
    return result


def _dataset(dataset: Any, result: pa.Table) -> Any:
    """Return `result` as a Dataset; the columns that were there keep their features, e.g. a ClassLabel."""
    return type(dataset)(result.replace_schema_metadata(dataset.features.arrow_schema.metadata))
