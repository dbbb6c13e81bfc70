"""A run that is told to drain sends nothing more, keeps every answer it paid for, and is resumed without a repeat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import AsyncHTTPClient, LLMStage
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.counters import sum_counters
from nemo_llm_stage.job.prepare import Job, prepare_job
from nemo_llm_stage.testing import Fault, SimulatedServer
from nemo_llm_stage.worker.engine import RunStatus
from nemo_llm_stage.worker.in_process import LocalEngine
from nemo_llm_stage.worker.orders import NO_ORDERS, Need, Orders
from nemo_llm_stage.worker.spec import spec_of
from nemo_llm_stage.worker.worker import PartitionWorker

NUM_ROWS = 60


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(service_time_s=0.1) as server:
        yield server


def make_job(server: SimulatedServer, folder: Path, **settings: Any) -> Job:
    path = folder / "in.parquet"
    if not path.exists():
        pq.write_table(pa.table({"text": [f"row {i}" for i in range(NUM_ROWS)]}), path)
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=4, base_delay=0.01)
    stage = LLMStage(client=client, model="sim", prompt="{{ text }}", output_column="x")
    return prepare_job(stage, path, folder / "out", JobSettings(rows_per_partition=10, **settings))


class DrainOnOrder:
    """Lets the workers work until told otherwise."""

    def __init__(self, *, is_overdue: bool = False) -> None:
        self.is_draining = False
        self.is_overdue = is_overdue

    def orders_of(self, worker: str, need: Need) -> Orders:
        return Orders(is_draining=True, is_overdue=self.is_overdue) if self.is_draining else NO_ORDERS

    def forget(self, worker: str) -> None:
        """Nothing is granted."""


def run_until(job: Job, num_rows: int, num_workers: int = 1, **orders: bool) -> list[Any]:
    """Run until so many rows are done, and drain then."""
    done: list[Any] = []
    control = DrainOnOrder(**orders)

    def monitor(status: RunStatus) -> None:
        num_done = sum_counters([status.open, *(report.counters for report in done)]).num_rows
        control.is_draining |= num_done >= num_rows

    for report in LocalEngine(num_workers).run(spec_of(job), job.pending, monitor, control):
        done.append(report)
    job.stage.close()
    return done


@pytest.mark.parametrize("num_workers", [1, 2])
def test_no_answer_is_lost_and_none_is_paid_for_twice(
    server: SimulatedServer, tmp_path: Path, num_workers: int
) -> None:
    """What was in flight is finished and journaled; the next run sends the rest."""
    run_until(make_job(server, tmp_path), 12, num_workers)
    assert 12 <= server.stats.num_requests < NUM_ROWS
    assert server.stats.num_aborted == 0
    run_until(make_job(server, tmp_path), NUM_ROWS + 1)
    assert (server.stats.num_requests, server.stats.num_duplicates) == (NUM_ROWS, 0)
    assert pq.read_table(tmp_path / "out").num_rows == NUM_ROWS


def test_partitions_that_are_whole_are_committed(server: SimulatedServer, tmp_path: Path) -> None:
    """Others leave only their journals."""
    done = run_until(make_job(server, tmp_path), 25)
    names = sorted(path.name for path in (tmp_path / "out").glob("part-*"))
    assert 2 <= len(names) == len(done) < 6


def test_an_overdue_request_is_abandoned(server: SimulatedServer, tmp_path: Path) -> None:
    """The run ends although the server never answers it."""
    server.faults = [Fault("hang", contains="row 5")]
    done = run_until(make_job(server, tmp_path), 0, is_overdue=True)
    assert 0 not in {report.index for report in done}  # its partition has no file


def test_rows_that_wait_for_a_retry_do_not_hold_up_the_end(server: SimulatedServer, tmp_path: Path) -> None:
    """Nothing of them is in flight."""
    server.faults = [Fault(429, retry_after_s=600)]
    job, control = make_job(server, tmp_path), DrainOnOrder()

    def monitor(status: RunStatus) -> None:
        control.is_draining |= status.stage.outage is not None and status.stage.num_retrying > 4

    assert list(LocalEngine().run(spec_of(job), job.pending, monitor, control)) == []
    server.faults = []
    assert job.stage.process(pa.table({"text": ["x"]})).column("x").null_count == 0  # the stage is not held back
    job.stage.close()


def test_an_order_that_comes_after_the_end_does_not_hold_back_the_stage(
    server: SimulatedServer, tmp_path: Path
) -> None:
    """The driver may have sent it before it heard of the end."""
    job = make_job(server, tmp_path)
    worker = PartitionWorker(spec_of(job))
    worker.run_partition(job.pending[0])
    worker.stop()
    worker.follow(Orders(is_draining=True))
    rows = job.stage.rows_of(pa.table({"text": ["x"]}))
    assert job.stage.submit(rows).result(timeout=10)[0]["x"].value is not None
    job.stage.close()
