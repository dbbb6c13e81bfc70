"""Chunks are joined where an order of their rows is worth something."""

from __future__ import annotations

import pyarrow as pa

from nemo_llm_stage.worker.chunk import ROWS_PER_CHUNK
from nemo_llm_stage.worker.wide import WIDE_BYTES, WIDE_ROWS, widened


def tables(sizes: list[int], text: str = "") -> list[pa.Table]:
    return [pa.table({"id": [f"{number}.{row}{text}" for row in range(size)]}) for number, size in enumerate(sizes)]


def test_tables_are_joined_up_to_a_number_of_rows() -> None:
    """Four usual chunks; every row stays, in its order."""
    given = tables([ROWS_PER_CHUNK] * 5 + [7])
    joined = list(widened(given, lambda: True))
    assert [table.num_rows for table in joined] == [WIDE_ROWS, ROWS_PER_CHUNK + 7]
    assert pa.concat_tables(joined) == pa.concat_tables(given)


def test_tables_are_joined_up_to_a_size() -> None:
    """One that is larger by itself stays alone."""
    given = tables([10, 10, 10, 40, 10], "x" * (WIDE_BYTES // 25))
    joined = list(widened(given, lambda: True))
    assert [table.num_rows for table in joined] == [20, 10, 40, 10]


def test_nothing_waits_before_an_order_is_known_to_help() -> None:
    """The first rows go out as soon as they are read."""
    wishes = iter([False, False, True])
    joined = list(widened(tables([3, 3, 3, 3]), lambda: next(wishes)))
    assert [table.num_rows for table in joined] == [3, 3, 6]
    assert list(widened([], lambda: True)) == []
