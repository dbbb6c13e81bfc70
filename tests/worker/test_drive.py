"""The loop that hands tasks out: workers may die, and one that only dies ends the run."""

from __future__ import annotations

from collections.abc import Sequence
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
from nemo_llm_stage.worker.drive import MAX_DEATHS, WorkerLostError, drive, handout_of
from nemo_llm_stage.worker.engine import RunStatus
from nemo_llm_stage.worker.host import WorkerHost, WorkerStatus
from nemo_llm_stage.worker.orders import NO_ORDERS, Orders
from nemo_llm_stage.worker.spec import WorkerSpec, spec_of
from nemo_llm_stage.worker.task import Task


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


def make_job(server: SimulatedServer, folder: Path) -> Job:
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(40)]}), folder / "in.parquet")
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=4)
    stage = LLMStage(client=client, model="sim", prompt="{{ text }}", output_column="x")
    return prepare_job(stage, folder / "in.parquet", folder / "out", JobSettings(rows_per_partition=10))


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


def test_a_worker_that_only_dies_ends_the_run(tmp_path: Path) -> None:
    """With what Ray says of it, rather than for ever."""
    with SimulatedServer() as server, pytest.raises(RunError, match=f"died {MAX_DEATHS} times in a row .* it is gone"):
        run(make_job(server, tmp_path), 1000)
