"""
Sets of rows by their places, in the order in which a partition is read; small where the rows lie together.

Pure. Knows numbers; knows nothing of files.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

END = sys.maxsize
"""Stands for the end of a partition whose rows were not counted."""


@dataclass(frozen=True, slots=True)
class RowSet:
    """
    A set of rows.

    Attributes:
        ranges: ``(start, stop)`` of rows that lie together, rising, with gaps between; the last may stop at `END`.
    """

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, places: Iterable[int]) -> RowSet:
        """Return the set of these rows."""
        return cls(tuple(_joined((place, place + 1) for place in sorted(places))))

    @classmethod
    def span(cls, start: int, stop: int = END) -> RowSet:
        """Return the rows from `start` to before `stop`."""
        return cls(((start, stop),) if start < stop else ())

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __contains__(self, place: int) -> bool:
        index = bisect_right(self.ranges, (place, END)) - 1
        return index >= 0 and self.ranges[index][0] <= place < self.ranges[index][1]

    def __or__(self, other: RowSet) -> RowSet:
        return RowSet(tuple(_joined(sorted((*self.ranges, *other.ranges)))))

    def __sub__(self, other: RowSet) -> RowSet:
        left: list[tuple[int, int]] = []
        for start, stop in self.ranges:
            for low, high in other.ranges:
                if high <= start or low >= stop:
                    continue
                if start < low:
                    left.append((start, low))
                start = max(start, high)
            if start < stop:
                left.append((start, stop))
        return RowSet(tuple(left))

    def __len__(self) -> int:
        """How many rows they are, at least; for sets that end before `END`."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def is_open(self) -> bool:
        """Whether they go on to the end, wherever that is."""
        return bool(self.ranges) and self.ranges[-1][1] == END

    def split(self, num: int) -> tuple[RowSet, RowSet]:
        """Return the first `num` rows, and the others."""
        first: list[tuple[int, int]] = []
        for index, (start, stop) in enumerate(self.ranges):
            if stop - start > num:
                first += [(start, start + num)] if num else []
                return RowSet(tuple(first)), RowSet(((start + num, stop), *self.ranges[index + 1 :]))
            first.append((start, stop))
            num -= stop - start
        return self, RowSet(())

    def shift(self, by: int) -> RowSet:
        """Return the rows so many places further on."""
        return RowSet(tuple((start + by, stop if stop == END else stop + by) for start, stop in self.ranges))

    def within(self, start: int, stop: int) -> Sequence[int]:
        """Return those of the rows that lie from `start` to before `stop`, one by one."""
        parts = [range(max(start, low), min(stop, high)) for low, high in self.ranges if low < stop and high > start]
        return parts[0] if len(parts) == 1 else [place for part in parts for place in part]


NO_ROWS = RowSet(())


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield rising ranges with those joined that touch or overlap."""
    last: tuple[int, int] | None = None
    for start, stop in ranges:
        if last is not None and start <= last[1]:
            last = (last[0], max(last[1], stop))
            continue
        if last is not None:
            yield last
        last = (start, stop)
    if last is not None:
        yield last
