"""
The partitions that are run in pieces, and what their pieces have counted.

Knows reports; knows nothing of who runs what.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

from nemo_llm_stage.counters import Counters, sum_counters
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.worker.task import Task


@dataclass
class _Cut:
    """A partition that is run in pieces. `num_left` counts the unfinished pieces and the rest that is not cut yet."""

    partition: Partition
    num_left: int = 1
    counters: list[Counters] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)


class Cuts:
    """The partitions of one run that are cut into pieces and not committed."""

    def __init__(self) -> None:
        self._cuts: dict[int, _Cut] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._cuts

    def counters(self) -> Counters:
        """Return what the finished pieces counted."""
        return sum_counters(counters for cut in self._cuts.values() for counters in cut.counters)

    def with_attempts(self, piece: Task) -> Task:
        """Return a piece with the names of the journals of its partition's finished ones."""
        return replace(piece, attempts=tuple(self._cuts[piece.partition.index].attempts))

    def add(self, partition: Partition, num_pieces: int = 1) -> Self:
        """Add pieces of a partition, and return these cuts; `partition` is the whole of it where it is not cut yet."""
        self._cuts.setdefault(partition.index, _Cut(partition)).num_left += num_pieces
        return self

    def count(self, partition: Partition, counters: Counters, *attempts: str) -> None:
        """Take note of what was counted, and of the journals that it is in."""
        cut = self._cuts.setdefault(partition.index, _Cut(partition))
        cut.counters.append(counters)
        cut.attempts += attempts

    def end_piece(self, index: int) -> Task | None:
        """Take note that a piece has ended; return the task that makes the file if it was the last one."""
        cut = self._cuts[index]
        cut.num_left -= 1
        if cut.num_left:
            return None
        counters = sum_counters(cut.counters)
        return Task(cut.partition, counters.num_rows, pieces=counters, attempts=tuple(cut.attempts))

    def forget(self, index: int) -> None:
        """Take note that a partition is committed."""
        self._cuts.pop(index, None)
