"""
Rows that came back from workers that had too many, until others take them in small pieces.

Knows places of rows; knows nothing of who has which.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.worker.rowset import RowSet
from nemo_llm_stage.worker.task import Task


class Returned:
    """Rows that belong to no worker, with the partition or the piece that their places count in."""

    def __init__(self) -> None:
        self._parts: deque[tuple[Partition, RowSet, int]] = deque()
        self._num_rows = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, partition: Partition, places: RowSet, num_rows: int) -> bool:
        """Add rows; return whether there are any."""
        if partition.num_rows is not None and places.is_open and partition.format == "parquet":
            places = places - RowSet.span(partition.num_rows)
        if not places.is_open:
            num_rows = len(places)
        if places:
            self._put(partition, places, num_rows)
        return bool(places)

    def fair_share(self, num_idle: int) -> int:
        """Return how many rows one of so many idle workers should take."""
        return -(-self._num_rows // max(1, num_idle))

    def take(self, num_rows: int) -> tuple[Task, bool]:
        """Return at most so many rows as a piece, and whether it was a part of what came back as one."""
        partition, places, num_all = self._parts.popleft()
        self._num_rows -= num_all
        first, rest = places.split(num_rows)
        num_first = min(num_rows, num_all)
        if rest:
            self._put(partition, rest, len(rest) if not rest.is_open else max(1, num_all - num_first))
        return piece_of(partition, first, num_first), bool(rest)

    def _put(self, partition: Partition, places: RowSet, num_rows: int) -> None:
        self._parts.appendleft((partition, places, num_rows))
        self._num_rows += num_rows


def piece_of(partition: Partition, rows: RowSet, num_rows: int, avoids: str | None = None) -> Task:
    """Return a task of these rows of a partition, or of a piece of one; of Parquet nothing else is read."""
    if partition.format == "parquet":
        low, high = rows.ranges[0][0], rows.ranges[-1][1]
        start, stop = partition.start + low, partition.start + high
        partition, rows = replace(partition, start=start, stop=stop, num_rows=stop - start), rows.shift(-low)
        if len(rows) == partition.num_rows:
            return Task(partition, num_rows, is_piece=True, avoids=avoids)
    return Task(partition, num_rows, is_piece=True, places=rows, avoids=avoids)
