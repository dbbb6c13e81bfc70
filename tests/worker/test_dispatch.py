"""Who runs what next: whole partitions first, pieces at the end, everything once, whoever dies."""

from __future__ import annotations

import random
from typing import Any

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.worker.dispatch import Handout
from nemo_llm_stage.worker.task import PartitionReport, PieceReport, Task


def make_handout(num_partitions: int, num_rows: int, **settings: Any) -> Handout:
    partitions = [
        Partition(index, "a.parquet", "parquet", index * num_rows, (index + 1) * num_rows, num_rows)
        for index in range(num_partitions)
    ]
    return Handout(
        partitions, **{"num_workers": 4, "max_concurrent_requests": 16, "rows_per_partition": num_rows} | settings
    )


def report_of(task: Task) -> PartitionReport | PieceReport:
    if task.is_piece:
        attempt = f"attempt-{task.number}"
        return PieceReport(task.partition, Counters(num_rows=task.num_rows), attempt, task.number)
    name = f"part-{task.partition.index}"
    return PartitionReport(task.partition.index, name, Counters(), is_first=True, number=task.number)


def take(handout: Handout, worker: str = "a", num_waiting: int = 0) -> list[Task]:
    return handout.take(worker, num_waiting=num_waiting, num_open=0)


def test_one_worker_gets_whole_partitions() -> None:
    """There is nobody to share them with."""
    handout = make_handout(10, 200, num_workers=1)
    tasks: list[Task] = []
    while not handout.is_over:
        tasks += (new := take(handout))
        for task in new:
            handout.finish("a", report_of(task))
    assert [task.partition.index for task in tasks] == list(range(10))
    assert not any(task.is_piece for task in tasks)


def test_shares_shrink_towards_the_end() -> None:
    """The first are whole partitions, the last a few rows."""
    handout = make_handout(40, 100)
    tasks: list[Task] = []
    while new := take(handout, worker=str(len(tasks) % 4)):
        tasks += new
    assert not tasks[0].is_piece
    assert tasks[-1].is_piece
    assert tasks[-1].num_rows <= 4
    assert max(task.num_rows for task in tasks[-10:]) < 40


def test_rows_are_handed_out_just_ahead() -> None:
    """A worker that has enough to do gets nothing more."""
    handout = make_handout(100, 100)
    assert take(handout, num_waiting=100_000) == []
    assert sum(task.num_rows for task in take(handout)) <= 200


def test_the_last_piece_brings_the_file() -> None:
    """With what the pieces count, and the names of their journals."""
    handout = make_handout(1, 100)
    tasks = take(handout)
    while new := take(handout):
        tasks += new
    assert all(task.is_piece for task in tasks)
    for task in tasks:
        assert not handout.is_over
        handout.finish("a", report_of(task))
    (last,) = take(handout)
    assert (last.is_piece, last.partition.start, last.partition.stop) == (False, 0, 100)
    assert last.pieces is not None
    assert last.pieces.num_rows == 100
    assert len(last.attempts) == len(tasks)
    handout.finish("a", report_of(last))
    assert handout.is_over


def test_every_row_is_done_once_whoever_dies() -> None:
    """Workers die at random; what they had is run by others."""
    rng = random.Random(3)
    handout = make_handout(12, 50)
    held: dict[str, list[Task]] = {name: [] for name in "abcd"}
    rows: list[int] = []
    committed: list[int] = []
    while not handout.is_over:
        worker = rng.choice("abcd")
        if rng.random() < 0.05:
            handout.release(worker)
            held[worker] = []
        held[worker] += take(handout, worker)
        if held[worker]:
            task = held[worker].pop(rng.randrange(len(held[worker])))
            handout.finish(worker, report_of(task))
            if task.pieces is None:
                rows += range(task.partition.start, task.partition.stop)
            if not task.is_piece:
                committed.append(task.partition.index)
    assert sorted(rows) == list(range(600))
    assert sorted(committed) == list(range(12))


def test_bytes_are_cut_where_rows_were_not_counted() -> None:
    """The parts of a partition of JSONL have all of its bytes."""
    partitions = [Partition(0, "a.jsonl", "jsonl", 0, 10_000, None)]
    handout = Handout(partitions, num_workers=2, max_concurrent_requests=4, rows_per_partition=100)
    tasks = take(handout)
    while new := take(handout):
        tasks += new
    bounds = sorted((task.partition.start, task.partition.stop) for task in tasks)
    assert len(bounds) > 4
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == 10_000


def test_pieces_of_lines_have_as_many_rows_as_the_others() -> None:
    """Counted lines are cut by bytes, and the rows of a piece are estimated."""
    partitions = [Partition(index, "a.jsonl", "jsonl", index * 10_000, (index + 1) * 10_000, 100) for index in range(2)]
    handout = Handout(partitions, num_workers=2, max_concurrent_requests=4, rows_per_partition=100)
    tasks = take(handout)
    while new := take(handout):
        tasks += new
    assert sum(task.num_rows for task in tasks) in range(190, 211)


def test_compressed_lines_stay_together() -> None:
    """They can only be read from the start of the file."""
    partitions = [Partition(0, "a.jsonl.gz", "jsonl", 0, 10_000, 100)]
    handout = Handout(partitions, num_workers=4, max_concurrent_requests=4, rows_per_partition=100)
    assert [task.is_piece for task in take(handout)] == [False]


def test_a_hundred_thousand_partitions_are_handed_out_in_seconds() -> None:
    """Each call costs as much as it hands out."""
    handout = make_handout(100_000, 10)
    num_done = 0
    while not handout.is_over:
        for task in take(handout):
            handout.finish("a", report_of(task))
            num_done += not task.is_piece
    assert num_done == 100_000
