"""
Workers take, give back, finish, fall silent and die in any order.

A row is with one worker that is heard of at most, and is done once in the end.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nemo_llm_stage.client.throttle import Spending
from nemo_llm_stage.core import RowResult
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.worker.dispatch import MAX_TASKS_OPEN, Handout
from nemo_llm_stage.worker.rowset import NO_ROWS, RowSet
from nemo_llm_stage.worker.standings import Standing
from nemo_llm_stage.worker.task import GivenBack, OverdueRequest, PartitionReport, PieceReport, Report, Task

WORKERS = ("a", "b", "c")
TOKENS = 100


@dataclass
class Held:
    """A task with a worker, and the rows of it that are left there."""

    task: Task
    rows: set[tuple[int, int]]
    is_piece: bool
    dropped: RowSet = NO_ROWS

    @classmethod
    def of(cls, task: Task) -> Held:
        part, places = task.partition, task.places or RowSet.span(0, task.partition.stop - task.partition.start)
        rows = {(part.index, row) for row in range(part.start, part.stop) if row - part.start in places}
        return cls(task, set() if task.pieces is not None else rows, task.is_piece)

    def report(self, attempt: str) -> Report:
        part, number = self.task.partition, self.task.number
        if self.is_piece:
            return PieceReport(part, Counters(num_rows=len(self.rows)), attempt, number, self.dropped)
        return PartitionReport(part.index, f"part-{part.index}", Counters(), is_first=True, number=number)


class HandoutMachine(RuleBasedStateMachine):
    """Knows who has what, and which rows and partitions are done."""

    hedges = False

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
            hedges=self.hedges,
        )
        self.held: dict[str, list[Held]] = {worker: [] for worker in WORKERS[:num_workers]}
        self.ghosts: list[tuple[str, Held]] = []
        self.rows: Counter[tuple[int, int]] = Counter()
        self.committed: Counter[int] = Counter()
        self.num_attempts = 0

    @rule(data=st.data(), num_waiting=st.integers(0, 200), num_free=st.integers(0, 20))
    def take(self, data: st.DataObject, num_waiting: int, num_free: int) -> None:
        worker = data.draw(st.sampled_from(sorted(self.held)))
        self.handout.note(worker, Standing(num_waiting, num_free, 0), now_s=0.0)
        self.take_tasks(worker, num_waiting, num_free)
        assert len(self.held[worker]) <= MAX_TASKS_OPEN

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        worker, index = self.any_task(data)
        self.finish_task(worker, index)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        """Some of the rows, and perhaps all from some row on."""
        worker, index = self.any_task(data)
        held = self.held[worker][index]
        if not held.task.can_share or not held.rows:
            return
        part = held.task.partition
        chosen = data.draw(st.sets(st.sampled_from(sorted(held.rows)), min_size=1))
        places = RowSet.of(row - part.start for _, row in chosen)
        last = max(row for _, row in held.rows)
        if (part.index, last) in chosen and data.draw(st.booleans()):  # "to the end, wherever that is"
            places = places | RowSet.span(last - part.start)
        held.rows -= chosen
        held.is_piece = True
        assert self.handout.finish(worker, GivenBack(held.task.number, places, len(chosen)))

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """A new worker takes the dead one's place, under the same name."""
        worker = data.draw(st.sampled_from(sorted(self.held)))
        self.handout.release(worker)
        self.held[worker] = []
        assert not self.handout.abandoned(worker)

    @rule(data=st.data())
    def fall_silent(self, data: st.DataObject) -> None:
        """What it had goes to others, and it is told so if it comes back."""
        worker = data.draw(st.sampled_from(sorted(self.held)))
        self.handout.release(worker, may_come_back=True)
        self.ghosts += [(worker, held) for held in self.held[worker]]
        assert {held.task.number for held in self.held[worker]} <= self.handout.abandoned(worker)
        self.held[worker] = []

    @precondition(lambda self: self.ghosts)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """What it says of tasks that others have changes nothing."""
        worker, held = self.ghosts.pop(data.draw(st.sampled_from(range(len(self.ghosts)))))
        assert not self.handout.finish(worker, held.report("late"))

    @invariant()
    def no_row_is_with_two_workers(self) -> None:
        """Nor with one that is done already."""
        held = Counter(row for tasks in self.held.values() for held in tasks for row in held.rows)
        assert all(num == 1 for num in (held + self.rows).values())

    def teardown(self) -> None:
        """Whoever lives ends the run."""
        if not hasattr(self, "handout"):
            return
        num_steps = 0
        while not self.handout.is_over:
            for worker, held in self.held.items():
                self.take_tasks(worker, num_waiting=0, num_free=10)
                while held:
                    self.finish_task(worker, 0)
            num_steps += 1
            assert num_steps < 1000
        assert self.handout.num_rows_ahead == 0
        assert self.handout.counters() == Counters()
        self.check_rows()
        assert self.committed == Counter(range(len(self.sizes)))

    def check_rows(self) -> None:
        assert self.rows == Counter((index, row) for index, size in enumerate(self.sizes) for row in range(size))

    def any_task(self, data: st.DataObject) -> tuple[str, int]:
        worker = data.draw(st.sampled_from([worker for worker, tasks in self.held.items() if tasks]))
        return worker, data.draw(st.sampled_from(range(len(self.held[worker]))))

    def take_tasks(self, worker: str, num_waiting: int, num_free: int) -> None:
        num_open = len(self.held[worker])
        tasks = self.handout.take(worker, num_waiting=num_waiting, num_open=num_open, num_free=num_free)
        self.held[worker] += map(Held.of, tasks)

    def finish_task(self, worker: str, index: int) -> None:
        held = self.held[worker].pop(index)
        part = held.task.partition
        self.rows.update(held.rows)
        self.num_attempts += 1
        assert self.handout.finish(worker, held.report(f"attempt-{self.num_attempts}"))
        if not held.is_piece:
            if held.task.pieces is not None:
                assert held.task.pieces.num_rows == part.stop - part.start
            self.committed[part.index] += 1


class HedgingMachine(HandoutMachine):
    """Some rows are with two workers. Each is answered by one of them when its partition is made, whoever dies."""

    hedges = True
    num_tokens = num_requests_twice = 0

    @rule(num_answers=st.integers(1, 300))
    def pay(self, num_answers: int) -> None:
        """The driver learns what was paid for; before, second sends are counted by rows."""
        self.num_tokens += TOKENS * num_answers
        self.handout.note_paid(Spending(num_answers=self.num_tokens // TOKENS, output_tokens=self.num_tokens))

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), num_missing=st.integers(1, 2))
    def send_a_second_time(self, data: st.DataObject, num_missing: int) -> None:
        """To any worker that is idle, within what second sends may take."""
        worker, index = self.any_task(data)
        held = self.held[worker][index]
        if not held.rows or not held.task.can_share:
            return
        place = data.draw(st.sampled_from(sorted(held.rows)))[1] - held.task.partition.start
        overdue = OverdueRequest(
            held.task.number, place, "http://slow", 1.0, {"a": RowResult("an answer")}, num_missing
        )
        self.handout.note_overdue(worker, (overdue,))
        other = data.draw(st.sampled_from(sorted(self.held)))
        tasks = self.handout.take(other, num_waiting=0, num_open=len(self.held[other]), num_free=10, is_quick=True)
        self.held[other] += map(Held.of, tasks)
        seconds = [task for task in tasks if task.avoids]
        assert all(task.known == overdue.known for task in seconds)
        held.is_piece = held.is_piece or bool(seconds)
        self.num_requests_twice += num_missing * len(seconds)
        if self.num_tokens:
            assert self.num_requests_twice * TOKENS <= 0.02 * self.num_tokens or not seconds

    @precondition(lambda self: any(held.task.avoids for tasks in self.held.values() for held in tasks))
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """A second task does: the row is the first one's still, or counts as one that failed where that is gone."""
        seconds = [(worker, held) for worker, tasks in self.held.items() for held in tasks if held.task.avoids]
        worker, held = data.draw(st.sampled_from(seconds))
        self.held[worker].remove(held)
        if not any(row in other.rows for row in held.rows for tasks in self.held.values() for other in tasks):
            self.rows.update(held.rows)
        self.num_attempts += 1
        failed = Counters(num_rows=1, num_failed=1)
        name, number = f"attempt-{self.num_attempts}", held.task.number
        report = PieceReport(held.task.partition, failed, name, number, sent=failed)
        assert self.handout.finish(worker, report) != (number in self.handout.abandoned(worker))

    def finish_task(self, worker: str, index: int) -> None:
        held = self.held[worker][index]
        number, start = held.task.number, held.task.partition.start
        if number in self.handout.abandoned(worker):  # the first worker was faster
            self.held[worker].pop(index)
            assert not self.handout.finish(worker, held.report("late"))
            return
        dropped = self.handout.dropped(worker).get(number, NO_ROWS)
        held.rows = {row for row in held.rows if row[1] - start not in dropped}
        held.dropped = dropped
        if held.is_piece or held.task.pieces is None:
            super().finish_task(worker, index)
            return
        part = held.task.partition
        assert {row for row in self.rows if row[0] == part.index} == {(part.index, row) for row in range(part.stop)}
        self.held[worker].pop(index)
        assert self.handout.finish(worker, held.report("whole"))
        self.committed[part.index] += 1

    def check_rows(self) -> None:
        assert set(self.rows) == {(index, row) for index, size in enumerate(self.sizes) for row in range(size)}

    @invariant()
    def no_row_is_with_two_workers(self) -> None:
        """But for those that are sent a second time."""


@pytest.mark.parametrize("machine", [HandoutMachine, HedgingMachine])
@pytest.mark.parametrize("max_examples", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_each_row_is_done_once(machine: type[HandoutMachine], max_examples: int) -> None:
    """Whoever takes, gives back, falls silent or dies."""
    limits = settings(max_examples=max_examples, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(machine, settings=limits)
