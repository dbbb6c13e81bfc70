"""The loop that hands tasks out: workers may die, and one that only dies ends the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import AsyncHTTPClient, LLMStage, RunError
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.job.prepare import Job, prepare_job
from nemo_llm_stage.testing import SimulatedServer
from nemo_llm_stage.worker.calls import Calls
from nemo_llm_stage.worker.drive import MAX_DEATHS, WorkerLostError, drive
from nemo_llm_stage.worker.engine import RunStatus
from nemo_llm_stage.worker.handouts import handout_of
from nemo_llm_stage.worker.host import WorkerHost, WorkerStatus
from nemo_llm_stage.worker.lost_answers import lost_answers_of
from nemo_llm_stage.worker.orders import NO_ORDERS, Orders
from nemo_llm_stage.worker.spec import WorkerSpec, spec_of
from nemo_llm_stage.worker.task import PartitionReport, Task


class MortalSlot:
    """A worker in this thread, which dies of so many of its first calls with something to do."""

    def __init__(self, spec: WorkerSpec, num_deaths: int) -> None:
        self._spec = spec
        self._num_deaths = num_deaths
        self.num_started = 0

    def start(self) -> Future[WorkerStatus]:
        self.num_started += 1
        self._host = WorkerHost(self._spec)
        return self.collect((), 0, 0.0)

    def collect(
        self, tasks: Sequence[Task], num_rows_ahead: int, timeout_s: float, orders: Orders = NO_ORDERS
    ) -> Future[WorkerStatus]:
        call: Future[WorkerStatus] = Future()
        if tasks and self._num_deaths:
            self._num_deaths -= 1
            call.set_exception(WorkerLostError("it is gone."))
        else:
            call.set_result(self._host.collect(tasks, num_rows_ahead, timeout_s, orders))
        return call

    def stop(self) -> None:
        self._host.stop()


class SilentSlot(MortalSlot):
    """A worker that runs what it is given, and says nothing until it is woken."""

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec, 0)
        self.abandoned: frozenset[int] = frozenset()
        self._held_back: tuple[Future[WorkerStatus], WorkerStatus] | None = None
        self._is_awake = False

    def collect(
        self, tasks: Sequence[Task], num_rows_ahead: int, timeout_s: float, orders: Orders = NO_ORDERS
    ) -> Future[WorkerStatus]:
        self.abandoned |= orders.abandoned
        call = super().collect(tasks, num_rows_ahead, timeout_s, orders)
        if not tasks or self._is_awake:
            return call
        silent: Future[WorkerStatus] = Future()
        self._held_back = silent, call.result()
        return silent

    def wake(self) -> None:
        self._is_awake = True
        if self._held_back is not None:
            silent, status = self._held_back
            self._held_back = None
            silent.set_result(status)


class HastySlot(MortalSlot):
    """A worker that says how it stands all the time."""

    def collect(
        self, tasks: Sequence[Task], num_rows_ahead: int, timeout_s: float, orders: Orders = NO_ORDERS
    ) -> Future[WorkerStatus]:
        return super().collect(tasks, num_rows_ahead, 0.01, orders)


class ShortLivedSlot(MortalSlot):
    """A worker whose first life ends once it has nine answers of each of its partitions."""

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec, 0)
        self.num_answers = 0
        self.on_death: Callable[[], None] = lambda: None

    def collect(
        self, tasks: Sequence[Task], num_rows_ahead: int, timeout_s: float, orders: Orders = NO_ORDERS
    ) -> Future[WorkerStatus]:
        call = super().collect(tasks, num_rows_ahead, timeout_s, orders)
        if not tasks or self.num_started > 1:
            return call
        while self.num_answers < 9 * len(tasks):
            self.num_answers = self._host.collect((), 0, 0.05).spending.num_answers
        self._host.stop()  # what has come is flushed, as it is by a worker that lives for another flush interval
        self.on_death()
        lost: Future[WorkerStatus] = Future()
        lost.set_exception(WorkerLostError("it is gone."))
        return lost


class QuickCalls(Calls[Any]):
    """A clock that is seconds ahead each time that it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self._skipped_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self._skipped_s

    def wait(self, timeout_s: float) -> list[Any]:
        self._skipped_s += 5.0
        return super().wait(0.01)


def make_job(server: SimulatedServer, folder: Path, output: str = "") -> Job:
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(40)]}), folder / "in.parquet")
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=8)
    stage = LLMStage(client=client, model="sim", prompt="{{ text }}", output_column="x")
    return prepare_job(stage, folder / "in.parquet", output or folder / "out", JobSettings(rows_per_partition=10))


def run(job: Job, *num_deaths: int) -> tuple[list[Any], list[MortalSlot]]:
    slots = [MortalSlot(spec_of(job), num) for num in num_deaths]
    statuses: list[RunStatus] = []
    try:
        reports = list(drive(slots, handout_of(spec_of(job), job.pending, len(slots)), statuses.append))
    finally:
        for slot in slots:
            slot.stop()
    return reports, slots


def test_what_a_dead_worker_had_is_handed_out_again(tmp_path: Path) -> None:
    """To the one that takes its place, or to any other."""
    with SimulatedServer() as server:
        reports, slots = run(make_job(server, tmp_path), 2)
    assert sorted(report.index for report in reports) == [0, 1, 2, 3]
    assert slots[0].num_started == 3


def test_answers_of_a_dead_worker_are_found_in_a_store(tmp_path: Path) -> None:
    """They are in its stream; only the rows in flight are sent again."""
    is_free = threading.Event()

    def service_time_s(body: dict[str, Any]) -> float:
        return 0.0 if is_free.is_set() or not body["messages"][0]["content"].endswith("9") else 30.0

    with SimulatedServer(service_time_s=service_time_s) as server:
        job = make_job(server, tmp_path, f"memory://{tmp_path.name}/out")
        spec = spec_of(job)
        slot = ShortLivedSlot(spec)
        slot.on_death = is_free.set
        handout = handout_of(spec, job.pending, 1)
        reports = list(drive([slot], handout, lambda _: None, on_lost=lost_answers_of(spec)))
        slot.stop()
        assert server.stats.num_requests == 40 + slot.num_answers / 9
    assert sum(report.counters.num_resumed for report in reports) == slot.num_answers > 0


def test_a_worker_that_only_dies_ends_the_run(tmp_path: Path) -> None:
    """With what Ray says of it, rather than for ever."""
    with SimulatedServer() as server, pytest.raises(RunError, match=f"died {MAX_DEATHS} times in a row .* it is gone"):
        run(make_job(server, tmp_path), 1000)


def test_a_silent_worker_is_lost_for_the_hand_out_and_may_come_back(tmp_path: Path) -> None:
    """Others run what it had; what it says of that later is of no account, and it is told to give it up."""
    with SimulatedServer() as server:
        job = make_job(server, tmp_path)
        slots: list[MortalSlot] = [SilentSlot(spec_of(job).at(0, 2)), HastySlot(spec_of(job).at(1, 2), 0)]
        silent = slots[0]
        assert isinstance(silent, SilentSlot)
        committed: list[PartitionReport] = []

        def monitor(status: RunStatus) -> None:
            if status.num_workers_up == 1:
                silent.wake()

        try:
            handout = handout_of(spec_of(job), job.pending, 2)
            for report in drive(slots, handout, monitor, pending=QuickCalls()):
                committed.append(report)
        finally:
            for slot in slots:
                slot.stop()
    assert sorted(report.index for report in committed) == [0, 1, 2, 3]
    assert sum(report.counters.num_rows for report in committed) == 40
    assert sum(pq.read_metadata(path).num_rows for path in (tmp_path / "out").glob("part-*")) == 40
