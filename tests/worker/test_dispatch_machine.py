"""Workers take, finish and die in any order: a row is with one living worker at most, and is done once in the end."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.worker.dispatch import MAX_TASKS_OPEN, Handout
from nemo_llm_stage.worker.task import PartitionReport, PieceReport, Task

WORKERS = ("a", "b", "c")


class HandoutMachine(RuleBasedStateMachine):
    """Knows who has what, and which rows and partitions are done."""

    @initialize(
        sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8),
        max_concurrent_requests=st.integers(1, 32),
        num_workers=st.integers(1, 3),
        can_cut=st.booleans(),
    )
    def begin(self, sizes: list[int], max_concurrent_requests: int, num_workers: int, can_cut: bool) -> None:
        self.sizes = sizes
        partitions = [Partition(index, "a.parquet", "parquet", 0, size, size) for index, size in enumerate(sizes)]
        self.handout = Handout(
            partitions,
            num_workers=num_workers,
            max_concurrent_requests=max_concurrent_requests,
            rows_per_partition=30,
            can_cut=can_cut,
        )
        self.held: dict[str, list[Task]] = {worker: [] for worker in WORKERS[:num_workers]}
        self.rows: Counter[tuple[int, int]] = Counter()
        self.committed: Counter[int] = Counter()
        self.num_attempts = 0

    @rule(data=st.data(), num_waiting=st.integers(0, 200))
    def take(self, data: st.DataObject, num_waiting: int) -> None:
        worker = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held[worker]
        held += self.handout.take(worker, num_waiting=num_waiting, num_open=len(held))
        assert len(held) <= MAX_TASKS_OPEN

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker, tasks in self.held.items() if tasks]))
        self.finish_task(worker, data.draw(st.sampled_from(range(len(self.held[worker])))))

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """A new worker takes the dead one's place, under the same name."""
        worker = data.draw(st.sampled_from(sorted(self.held)))
        self.handout.release(worker)
        self.held[worker] = []

    def finish_task(self, worker: str, index: int) -> None:
        task = self.held[worker].pop(index)
        part = task.partition
        if task.pieces is None:
            self.rows.update((part.index, row) for row in range(part.start, part.stop))
        if task.is_piece:
            self.num_attempts += 1
            report = PieceReport(part, Counters(num_rows=task.num_rows), f"attempt-{self.num_attempts}")
            self.handout.finish(worker, report)
            return
        if task.pieces is not None:
            assert task.pieces.num_rows == part.stop - part.start
        self.committed[part.index] += 1
        self.handout.finish(worker, PartitionReport(part.index, f"part-{part.index}", Counters(), is_first=True))

    @invariant()
    def no_row_is_with_two_workers(self) -> None:
        """Nor with one that is done already."""
        held = Counter(
            (task.partition.index, row)
            for tasks in self.held.values()
            for task in tasks
            if task.pieces is None
            for row in range(task.partition.start, task.partition.stop)
        )
        assert all(num == 1 for num in (held + self.rows).values())

    def teardown(self) -> None:
        """Whoever lives ends the run."""
        if not hasattr(self, "handout"):
            return
        num_steps = 0
        while not self.handout.is_over:
            for worker, held in self.held.items():
                held += self.handout.take(worker, num_waiting=0, num_open=len(held))
                while held:
                    self.finish_task(worker, 0)
            num_steps += 1
            assert num_steps < 1000
        assert self.handout.num_rows_ahead == 0
        assert self.handout.counters() == Counters()
        assert self.rows == Counter((index, row) for index, size in enumerate(self.sizes) for row in range(size))
        assert self.committed == Counter(range(len(self.sizes)))


TestHandout = HandoutMachine.TestCase
TestHandout.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
