"""
What a worker is told to do, and what it says of it afterwards.

Small, and the same for every engine. Knows nothing of how it is done.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_llm_stage.core import COST_NAMES, Counters
from nemo_llm_stage.dataset.plan import Partition


@dataclass(frozen=True, slots=True)
class Task:
    """
    One partition, or a piece of one.

    Attributes:
        partition: What to run; of a piece, the same partition with narrower bounds.
        num_rows: In it; estimated where they were not counted.
        is_piece: Whether its rows are only asked and journaled.
        pieces: What the pieces of `partition` count together, where all of them are done and only the file is missing.
        attempts: Journals of those pieces of the partition that are done: a piece has no use for them, and the file is
            made of them.
    """

    partition: Partition
    num_rows: int
    is_piece: bool = False
    pieces: Counters | None = None
    attempts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PartitionReport:
    """
    One partition is committed.

    Attributes:
        index: The partition's.
        name: The committed file's.
        counters: What the file holds.
        is_first: False where another worker had committed it before; that one's file stands.
    """

    index: int
    name: str
    counters: Counters
    is_first: bool


@dataclass(frozen=True, slots=True)
class PieceReport:
    """
    The rows of one piece are journaled.

    Attributes:
        piece: As it was given.
        counters: Of its rows.
        attempt: Its journal.
    """

    piece: Partition
    counters: Counters
    attempt: str


Report = PartitionReport | PieceReport


def settle(counters: Counters, pieces: Counters, asked: Counters) -> None:
    """
    Put into `counters`, of a partition made of journals, what its rows did cost.

    Args:
        counters: Of the partition's file.
        pieces: Of its pieces.
        asked: Of those rows that were asked when the file was made, as their pieces had no answer to them.
    """
    for name in COST_NAMES:
        setattr(counters, name, getattr(pieces, name) + getattr(asked, name))
