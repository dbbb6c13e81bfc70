"""
Chunks of a partition joined to wide ones, where an order of their rows is worth something.

The more rows are ordered at once, the more of those that begin alike stand together. Knows tables; knows nothing of
prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from nemo_llm_stage.worker.chunk import ROWS_PER_CHUNK

WIDE_ROWS = 4 * ROWS_PER_CHUNK
"""More than the 10,000 rows of the usual partition."""

WIDE_BYTES = 32 << 20
"""With the rows and prompts made of it, a wide chunk takes a few times as much memory for a moment."""


def widened(tables: Iterable[pa.Table], is_wanted: Callable[[], bool]) -> Iterator[pa.Table]:
    """
    Yield the rows of `tables` in fewer tables while `is_wanted()`, each of at most `WIDE_ROWS` and `WIDE_BYTES`.

    A table that is larger by itself stays as it is.
    """
    held: list[pa.Table] = []
    num_rows = num_bytes = 0
    for table in tables:
        if held and (num_rows + table.num_rows > WIDE_ROWS or num_bytes + table.nbytes > WIDE_BYTES):
            yield pa.concat_tables(held)
            held, num_rows, num_bytes = [], 0, 0
        if not held and not is_wanted():
            yield table
            continue
        held.append(table)
        num_rows, num_bytes = num_rows + table.num_rows, num_bytes + table.nbytes
    if held:
        yield pa.concat_tables(held)
