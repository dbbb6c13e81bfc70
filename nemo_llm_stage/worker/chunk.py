"""The rows that a worker reads, runs and writes at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from nemo_llm_stage.dataset.jsonl import LINE
from nemo_llm_stage.rows.row import Known

ROWS_PER_CHUNK = 4096
"""
Rows of a chunk: the memory that a partition takes does not depend on its size.

Rows are ordered by prefix within a chunk, so it should hold many rows of each group; see also `worker/wide.py`.
"""


@dataclass(frozen=True)
class Chunk:
    """
    Rows of a partition. All of them are run, or only some.

    Attributes:
        table: All rows.
        input: The rows that are run, with the columns of the input.
        places: Positions of those rows in `table`, rising; None for all.
        known: For each of those rows the results of columns that are not generated again; None if all columns are.
        errors: For each of those rows its errors before: output column → error.
    """

    table: pa.Table
    input: pa.Table
    places: Sequence[int] | None = None
    known: Sequence[Known] | None = None
    errors: Sequence[Mapping[str, str | None]] = ()

    @classmethod
    def whole(cls, table: pa.Table) -> Chunk:
        """Return a chunk all of whose rows are run."""
        return cls(table, table.drop_columns([LINE]) if LINE in table.schema.names else table)
