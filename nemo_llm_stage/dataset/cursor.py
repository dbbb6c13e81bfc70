"""
Readers of Parquet and Arrow files that stay where they stopped, for the next partition of a file to read on from there.

A row group can only be decoded from its start: without this, the partitions of one large group would each decode all
rows before their own. Knows files; knows nothing of partitions.
"""

from __future__ import annotations

import itertools
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from nemo_llm_stage.dataset.arrow_file import ArrowFile
from nemo_llm_stage.dataset.files import format_of
from nemo_llm_stage.dataset.parquet_file import open_parquet
from nemo_llm_stage.dataset.storage import open_filesystem

MAX_KEPT = 8
"""Open readers that a worker keeps: each has a file and a few decoded pages."""


class Cursor(ABC):
    """
    A place in one file, whose rows come in groups that are decoded from their starts.

    Args:
        path: The file.
        rows_per_batch: Most rows given at once.
        starts: Row that each group starts at, and the number of rows.

    Attributes:
        position: The next row it gives, counted over the whole file.
    """

    def __init__(self, path: str, rows_per_batch: int, starts: Sequence[int]) -> None:
        self.path = path
        self.position = 0
        self._rows_per_batch = rows_per_batch
        self._starts = starts
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._rest: pa.RecordBatch | None = None

    @abstractmethod
    def batches(self, groups: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the groups, at most `rows_per_batch` at a time."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """
        Yield the rows ``[start, stop)`` as far as there are any, at most `rows_per_batch` at a time.

        Raises:
            OSError: The file cannot be read.
            pyarrow.ArrowException: It is damaged.
        """
        if not self.is_near(start):
            self._batches = self._rest = None
            self.position = self._starts[self._group_of(start)]
        stop = min(stop, self._starts[-1])
        while self.position < stop:
            batch = self._next(stop)
            if batch is None:
                return
            low, high = max(0, start - self.position), min(batch.num_rows, stop - self.position)
            self._rest = batch.slice(high) if high < batch.num_rows else None
            self.position += high
            if low < high:
                yield batch.slice(low, high - low)

    def is_near(self, start: int) -> bool:
        """Whether `start` lies ahead in the same row group: to another one, a jump is cheaper than reading on."""
        return self.position <= start and self._group_of(self.position) == self._group_of(start)

    def _group_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def _next(self, stop: int) -> pa.RecordBatch | None:
        batch, self._rest = self._rest, None
        if batch is None and self._batches is not None:
            batch = next(self._batches, None)
        if batch is None:  # no group beyond `stop` is looked at: it may be damaged, which is for others to find
            groups = list(range(self._group_of(self.position), self._group_of(stop - 1) + 1))
            self._batches = self.batches(groups)
            batch = next(self._batches, None)
        return batch


class ParquetCursor(Cursor):
    """
    A place in a Parquet file.

    Args:
        path: As fsspec takes it.
        rows_per_batch: Most rows decoded at once.
        options: More of `open_parquet`.

    Raises:
        OSError: The file cannot be read.
        pyarrow.ArrowException: It is no Parquet file.
    """

    def __init__(self, path: str, rows_per_batch: int, options: Mapping[str, Any] | None = None) -> None:
        fs, inner = open_filesystem(path)
        self._raw = fs.open(inner, "rb")
        try:
            # Not pre-buffered, as that would hold a whole row group, however large.
            self._file = open_parquet(
                self._raw, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True, **(options or {})
            )
        except BaseException:
            self._raw.close()
            raise
        metadata = self._file.metadata
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        super().__init__(path, rows_per_batch, list(itertools.accumulate(sizes, initial=0)))

    def batches(self, groups: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of row groups."""
        batches: Iterator[pa.RecordBatch] = self._file.iter_batches(
            batch_size=self._rows_per_batch, row_groups=list(groups)
        )
        return batches

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._raw.close()


class ArrowCursor(Cursor):
    """
    A place in a file of Arrow's IPC format.

    Args:
        path: As fsspec takes it.
        rows_per_batch: Most rows given at once.

    Raises:
        OSError: The file cannot be read.
        pyarrow.ArrowException: It is no Arrow file.
    """

    def __init__(self, path: str, rows_per_batch: int) -> None:
        self._file = ArrowFile(path)
        super().__init__(path, rows_per_batch, self._file.starts())

    def batches(self, groups: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of record batches."""
        for batch in self._file.batches(groups[0]):
            for start in range(0, batch.num_rows, self._rows_per_batch):
                yield batch.slice(start, self._rows_per_batch)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Cursors:
    """
    The cursors of one worker that are not in use. May be used from several threads.

    Args:
        rows_per_batch: Most rows that a cursor decodes at once.
    """

    def __init__(self, rows_per_batch: int) -> None:
        self._rows_per_batch = rows_per_batch
        self._kept: list[Cursor] = []
        self._lock = threading.Lock()

    def take(self, path: str, start: int, options: Mapping[str, Any] | None = None) -> Cursor:
        """
        Return a cursor for the caller alone: the one nearest before row `start` of the file, or else a new one.

        Args:
            path: The file.
            start: Row that is read next.
            options: More of `open_parquet` for a Parquet file; the same each time.
        """
        with self._lock:
            near = [cursor for cursor in self._kept if cursor.path == path and cursor.is_near(start)]
            best = max(near, key=lambda cursor: cursor.position, default=None)
            if best is not None:
                self._kept.remove(best)
                return best
        if format_of(path) == "arrow":
            return ArrowCursor(path, self._rows_per_batch)
        return ParquetCursor(path, self._rows_per_batch, options)

    def give_back(self, cursor: Cursor) -> None:
        """Keep a cursor for another partition; the one kept longest is closed where there are too many."""
        with self._lock:
            self._kept.append(cursor)
            oldest = self._kept.pop(0) if len(self._kept) > MAX_KEPT else None
        if oldest is not None:
            oldest.close()

    def close(self) -> None:
        """Close all that are kept."""
        with self._lock:
            kept, self._kept = self._kept, []
        for cursor in kept:
            cursor.close()
