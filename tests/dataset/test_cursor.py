"""Parquet readers that are kept between partitions."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage.dataset.cursor import MAX_KEPT, Cursors, ParquetCursor

NUM_ROWS = 100


@pytest.fixture(params=[7, 30, 1000])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A file whose rows are their own numbers, in groups of several sizes."""
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"row": range(NUM_ROWS)}), file, row_group_size=request.param)
    return str(file)


def read(cursors: Cursors, path: str, start: int, stop: int) -> list[int]:
    cursor = cursors.take(path, start)
    batches = list(cursor.read(start, stop))
    assert all(0 < batch.num_rows <= 8 for batch in batches)
    cursors.give_back(cursor)
    return [row for batch in batches for row in batch.column("row").to_pylist()]


def test_any_ranges_in_any_order_hold_their_rows(path: str) -> None:
    """Whatever a kept reader has read before."""
    rng = random.Random(0)
    cursors = Cursors(8)
    for _ in range(200):
        start = rng.randrange(NUM_ROWS)
        stop = rng.randrange(start, NUM_ROWS + 1)
        assert read(cursors, path, start, stop) == list(range(start, stop))
    cursors.close()


def test_the_next_range_is_read_by_the_reader_that_stopped_before_it(path: str) -> None:
    """So nothing is decoded twice."""
    cursors = Cursors(8)
    first = cursors.take(path, 0)
    assert [batch.num_rows for batch in first.read(0, 5)] == [5]
    cursors.give_back(first)
    assert cursors.take(path, 5) is first


def test_a_reader_in_use_or_past_the_range_is_not_taken(path: str) -> None:
    """Two partitions read at the same time, or an earlier one read again, have readers of their own."""
    cursors = Cursors(8)
    first = cursors.take(path, 0)
    assert cursors.take(path, 0) is not first
    assert sum(batch.num_rows for batch in first.read(0, 50)) == 50
    cursors.give_back(first)
    assert cursors.take(path, 10) is not first


def test_readers_that_nobody_needs_are_closed(tmp_path: Path) -> None:
    """However many files there are, few are open."""
    cursors = Cursors(8)
    taken = []
    for number in range(MAX_KEPT + 1):
        file = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"row": [number]}), file)
        taken.append(cursors.take(str(file), 0))
        cursors.give_back(taken[-1])
    assert cursors.take(str(tmp_path / "1.parquet"), 0) is taken[1]
    assert cursors.take(str(tmp_path / "0.parquet"), 0) is not taken[0]


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux to tell what was read")
def test_a_huge_row_group_is_read_as_it_is_needed(tmp_path: Path) -> None:
    """Its first rows do not bring all of it into memory."""
    texts = [f"{number} " + "word " * 200 for number in range(60_000)]
    path = tmp_path / "huge.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=60_000, compression="none", use_dictionary=False)
    cursor = ParquetCursor(str(path), 1024)
    before = _num_bytes_read()
    batch = next(cursor.read(0, 60_000))
    assert batch.num_rows <= 1024
    assert _num_bytes_read() - before < path.stat().st_size / 4
    cursor.close()


def _num_bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])
