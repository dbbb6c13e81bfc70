"""
What a worker is told to run, and what it reports afterwards.

Small, and the same for every engine. Knows nothing of how a task is run.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_llm_stage.counters import COST_NAMES, Counters
from nemo_llm_stage.dataset.plan import Partition


@dataclass(frozen=True, slots=True)
class Task:
    """
    One partition, or a piece of one.

    Attributes:
        partition: What to run; for a piece, its partition with narrower bounds.
        num_rows: Rows in it; estimated if they were not counted.
        is_piece: Whether its rows are only answered and journaled.
        pieces: Counts of all pieces of `partition`, once they are done and only the file is missing; None before.
        attempts: Journals of the partition's finished pieces. The file is made from them; another piece ignores them.
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
        counters: What the file counts.
        is_first: False if another worker had committed the partition; that worker's file stands.
        seconds: From its start in the worker to its commit; of pieces only what came after the last.
    """

    index: int
    name: str
    counters: Counters
    is_first: bool
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PieceReport:
    """
    The rows of one piece are journaled.

    Attributes:
        piece: As it was assigned.
        counters: Of its rows.
        attempt: Name of its journal.
    """

    piece: Partition
    counters: Counters
    attempt: str


Report = PartitionReport | PieceReport


def settle(counters: Counters, pieces: Counters, sent: Counters) -> None:
    """
    Set the costs in `counters`: for a file that was made from journals, its pieces have paid most of them.

    Args:
        counters: Of the partition's file.
        pieces: Of its pieces.
        sent: Of the rows that were sent again when the file was made, because they had failed in their pieces.
    """
    for name in COST_NAMES:
        setattr(counters, name, getattr(pieces, name) + getattr(sent, name))
