"""
What a committed file says about itself, for `verify` to compare with the plan.

Knows files and their counts; knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.core import Counters
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.summary import SUMMARY_KEY, Summary, read_footer


@dataclass(frozen=True)
class CommittedFile:
    """
    What a committed file tells of itself.

    Attributes:
        counters: Counted as it was written.
        job_id: Of the job that wrote it; None where that is lost.
        num_rows: In the file.
        errors_by_column: Output column → rows with something in its error column.
        schema: Of a Parquet file, without metadata.
    """

    counters: Counters
    job_id: str | None
    num_rows: int
    errors_by_column: dict[str, int]
    schema: pa.Schema | None = None


def inspect(output: OutputFolder, name: str, output_columns: Sequence[str]) -> CommittedFile:
    """
    Return what a committed file says about itself: a Parquet file by its footer, a JSONL file by its rows.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged; also `pyarrow.ArrowException`, KeyError and TypeError.
    """
    if output.format == "jsonl":
        errors = [[row[f"{column}_error"] for column in output_columns] for row in output.rows(name)]
        nums = [sum(error is not None for error in column) for column in zip(*errors, strict=True)]
        by_column = dict(zip(output_columns, nums or [0] * len(output_columns), strict=True))
        summary = output.read_summary(name)
        job_id = None if summary is None else summary.job_id
        return CommittedFile(output.read_counters(name), job_id, len(errors), by_column)
    footer = read_footer(output.folder, name)
    by_column = {column: footer.num_rows - _num_nulls(footer, f"{column}_error") for column in output_columns}
    schema = footer.schema.to_arrow_schema().remove_metadata()
    summary = Summary.decode(footer.metadata[SUMMARY_KEY])
    return CommittedFile(summary.counters, summary.job_id, footer.num_rows, by_column, schema)


def _num_nulls(metadata: pq.FileMetaData, column: str) -> int:
    """Return how many nulls a flat column of a Parquet file has, by its statistics."""
    leaves = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    leaf = leaves.index(column)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    return sum(group.column(leaf).statistics.null_count for group in groups if group.num_rows)  # an empty one has none
