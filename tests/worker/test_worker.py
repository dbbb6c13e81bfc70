"""The worker takes partitions to committed files, and leaves off when told to."""

from __future__ import annotations

import concurrent.futures
import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import AsyncHTTPClient, LLMStage, RunError
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.job.prepare import Job, prepare_job
from nemo_llm_stage.testing import SimulatedServer
from nemo_llm_stage.worker.spec import spec_of
from nemo_llm_stage.worker.worker import PartitionWorker


def make_job(server: SimulatedServer, folder: Path) -> Job:
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(20)]}), folder / "in.parquet")
    stage = LLMStage(client=AsyncHTTPClient(server.base_url), model="sim", prompt="{{ text }}", output_column="x")
    return prepare_job(stage, folder / "in.parquet", folder / "out", JobSettings(rows_per_partition=10))


def test_a_stopped_worker_asks_nothing_more(tmp_path: Path) -> None:
    """Not even for the partitions that it is given after."""
    with SimulatedServer() as server:
        job = make_job(server, tmp_path)
        worker = PartitionWorker(spec_of(job))
        worker.run_partition(job.pending[0])
        worker.stop()
        with pytest.raises(concurrent.futures.CancelledError):
            worker.run_partition(job.pending[1])
        assert server.stats.num_requests == 10


def test_a_partition_that_is_committed_is_not_asked_again(tmp_path: Path) -> None:
    """A worker may die after the commit and before it reports it: whoever takes its place finds the file."""
    with SimulatedServer() as server:
        job = make_job(server, tmp_path)
        reports = [PartitionWorker(spec_of(job)).run_partition(job.pending[0]) for _ in range(2)]
        assert server.stats.num_requests == 10
    assert [report.is_first for report in reports] == [True, False]
    assert reports[0].counters == reports[1].counters


def test_the_first_failure_is_every_partitions(tmp_path: Path) -> None:
    """A disk that is full for one is full for all: nothing more is asked whose answer could not be kept."""

    def refuse(name: str) -> None:
        if name == "journal.before_write":
            raise OSError(errno.ENOSPC, "No space left on device")

    with SimulatedServer() as server:
        job = make_job(server, tmp_path)
        worker = PartitionWorker(spec_of(job))
        failpoints.listen(refuse)
        for partition in job.pending:
            with pytest.raises(RunError, match="No space left on device"):
                worker.run_partition(partition)
        failpoints.listen(None)
        assert server.stats.num_requests <= 10
