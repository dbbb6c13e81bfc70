"""
What a committed file says about itself, for `verify` to compare with the plan.

Knows files and their counts; knows nothing of plans.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.checksum import checksum_of
from nemo_llm_stage.dataset.checksum import is_intact as is_intact_parquet
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.parquet_file import read_metadata
from nemo_llm_stage.dataset.summary import SUMMARY_KEY, Summary, read_footer


@dataclass(frozen=True)
class CommittedFile:
    """
    What a committed file says about itself.

    Attributes:
        counters: Counted as it was written.
        job_id: Of the job that wrote it; None where that is lost.
        num_rows: In the file.
        errors_by_column: Output column → rows that say why it is null.
        schema: Of a Parquet file, without metadata.
    """

    counters: Counters
    job_id: str | None
    num_rows: int
    errors_by_column: dict[str, int]
    schema: pa.Schema | None = None


def inspect(
    output: OutputFolder, name: str, reasons: Mapping[str, Sequence[str]], data: bytes | None = None
) -> CommittedFile:
    """
    Return what a committed file says about itself: a Parquet file by its footer, a JSONL file by its rows.

    Args:
        output: The folder.
        name: The file's.
        reasons: Output column → the columns that say why it is null.
        data: All bytes of a Parquet file, where they are here already.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged; also `pyarrow.ArrowException`, KeyError and TypeError.
    """
    if output.format == "jsonl":
        num_rows, by_column = 0, dict.fromkeys(reasons, 0)
        for row in output.rows(name):
            num_rows += 1
            for column, names in reasons.items():
                by_column[column] += any(row[reason] is not None for reason in names)
        summary = output.read_summary(name)
        job_id = None if summary is None else summary.job_id
        return CommittedFile(output.read_counters(name), job_id, num_rows, by_column)
    footer = read_footer(output.folder, name) if data is None else read_metadata(io.BytesIO(data))
    by_column = {
        column: sum(footer.num_rows - _num_nulls(footer, reason) for reason in names)
        for column, names in reasons.items()
    }
    schema = footer.schema.to_arrow_schema().remove_metadata()
    summary = Summary.decode(footer.metadata[SUMMARY_KEY])
    return CommittedFile(summary.counters, summary.job_id, footer.num_rows, by_column, schema)


def check_bytes(output: OutputFolder, name: str, data: bytes | None = None) -> None:
    """
    Read a committed file as a whole and compare it with its checksum.

    A file of an older version has none: of a Parquet file every page is decoded then, which finds most damage.

    Args:
        output: The folder.
        name: The file's.
        data: All of its bytes, where they are here already.

    Raises:
        ValueError: It is damaged; also `pyarrow.ArrowException`.
        OSError: It cannot be read.
    """
    with output.folder.fs.open(output.folder.path(name), "rb") if data is None else io.BytesIO(data) as raw:
        if output.format == "jsonl":
            summary = output.read_summary(name)
            if summary is None or summary.checksum is None:
                return
            is_intact: bool | None = summary.checksum_over(checksum_of(raw)) == summary.checksum
        else:
            is_intact = is_intact_parquet(raw)
    if is_intact is None:
        for _ in output.rows(name):
            pass
    elif not is_intact:
        raise ValueError("its bytes do not fit its checksum.")


def _num_nulls(metadata: pq.FileMetaData, column: str) -> int:
    """Return how many nulls a flat column of a Parquet file has, by its statistics."""
    leaves = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    leaf = leaves.index(column)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    return sum(group.column(leaf).statistics.null_count for group in groups if group.num_rows)  # an empty one has none
