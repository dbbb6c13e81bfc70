"""
What a worker gets to run, and what it reports afterwards.

Small, and the same for every engine. Knows nothing of how a task is run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nemo_llm_stage.core import Outcome
from nemo_llm_stage.counters import COST_NAMES, Counters
from nemo_llm_stage.dataset.file_stat import FileStat
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.worker.rowset import NO_ROWS, RowSet


@dataclass(frozen=True, slots=True)
class Task:
    """
    One partition, or a piece of one, or a few rows of one.

    Attributes:
        number: Of the run; tells it from other tasks with the same rows.
        partition: What to run; for a piece, its partition with narrower bounds.
        num_rows: Rows in it; estimated if they were not counted.
        is_piece: Whether its rows are only answered and journaled.
        pieces: Counts of all pieces of `partition`, once they are done and only the file is missing; None before.
        attempts: Journals of the partition's finished pieces. The file is made from them; another piece ignores them.
        places: Of a piece, the rows of `partition` that belong to it; None for all.
        is_fresh: Whether nothing of the partition was in the folder as the run began, and no worker has lost it since:
            it need not be looked up.
        avoids: Base URL of a slow server where the row of this piece is in flight: it is sent a second time.
        known: Of such a row: the results of columns that it has already. The others are asked for.
    """

    partition: Partition
    num_rows: int
    is_piece: bool = False
    pieces: Counters | None = None
    attempts: tuple[str, ...] = ()
    number: int = 0
    places: RowSet | None = None
    avoids: str | None = None
    known: Outcome = field(default_factory=dict)
    is_fresh: bool = False

    @property
    def key(self) -> tuple[int, Partition]:
        """Tells it from the other tasks of a worker."""
        return self.number, self.partition

    @property
    def rows(self) -> RowSet:
        """Its rows by their places in `partition`."""
        return RowSet.span(0) if self.places is None else self.places

    @property
    def can_share(self) -> bool:
        """Whether rows of it can be given to another worker."""
        return self.pieces is None and self.avoids is None


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
        number: Of the task.
        stat: Of the file, where this worker has made it.
    """

    index: int
    name: str
    counters: Counters
    is_first: bool
    seconds: float = 0.0
    number: int = 0
    stat: FileStat | None = None


@dataclass(frozen=True, slots=True)
class PieceReport:
    """
    The rows of one piece are journaled, or those of a partition that it has not given back.

    Attributes:
        piece: As it was assigned.
        counters: Of its rows.
        attempt: Name of its journal.
        number: Of the task.
        dropped: Rows that were cancelled because another worker had answered them.
        sent: Of a row that is sent a second time, what was asked for here; `counters` are of the whole row.
    """

    piece: Partition
    counters: Counters
    attempt: str
    number: int = 0
    dropped: RowSet = NO_ROWS
    sent: Counters | None = None


@dataclass(frozen=True, slots=True)
class GivenBack:
    """
    Rows of a task that the worker has not sent and will not send. The task goes on without them.

    Attributes:
        number: Of the task.
        places: Of the rows in its partition.
        num_rows: How many they are; estimated if they were not counted.
    """

    number: int
    places: RowSet
    num_rows: int


@dataclass(frozen=True, slots=True)
class OverdueRequest:
    """
    A row that is in flight for long.

    Attributes:
        number: Of its task.
        place: In the task's partition.
        url: Base URL of the server.
        age_s: Seconds since it was sent.
        known: The results of the columns that it has already.
        num_missing: Columns that it lacks.
    """

    number: int
    place: int
    url: str
    age_s: float
    known: Outcome = field(default_factory=dict)
    num_missing: int = 1


Report = PartitionReport | PieceReport | GivenBack


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
