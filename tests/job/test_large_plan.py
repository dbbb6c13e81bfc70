"""A job of more than ten thousand partitions keeps its plan beside its record."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import AsyncHTTPClient, LLMStage, OutputConflictError
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.plan_file import MAX_IN_RECORD
from nemo_llm_stage.job.prepare import Job, prepare_job
from nemo_llm_stage.job.state import read_state
from nemo_llm_stage.testing import SimulatedServer

NUM = MAX_IN_RECORD + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    write_input(tmp_path / "in" / "a.parquet", NUM)
    return tmp_path


def write_input(path: Path, num_rows: int) -> None:
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(num_rows)]}), path)


def prepare(server: SimulatedServer, folder: Path, *, restart: bool = False) -> Job:
    stage = LLMStage(client=AsyncHTTPClient(server.base_url), model="sim", prompt="{{ text }}", output_column="x")
    return prepare_job(stage, folder / "in", folder / "out", JobSettings(rows_per_partition=1), restart=restart)


def commit_first(job: Job) -> None:
    """Or else new input would be a new job."""
    schema = pa.schema([("text", pa.string())])
    with job.output.writer(schema, job.id) as writer:
        writer.write(pa.table({"text": ["row 0"]}, schema=schema))
        writer.commit(job.output.name_of(job.plan.partitions[0]), Counters(num_rows=1))


def plans(folder: Path) -> set[str]:
    return {path.name.rpartition("-")[0] for path in (folder / ".out.nemo_llm_stage").glob("plan-*")}


def test_it_goes_on_and_grows(folder: Path) -> None:
    """With the plan that it had, and one plan only."""
    with SimulatedServer() as server:
        first = prepare(server, folder)
        assert (folder / ".out.nemo_llm_stage" / "job.json").stat().st_size < 20_000
        commit_first(first)
        again = prepare(server, folder)
        assert (again.id, again.plan.partitions) == (first.id, first.plan.partitions)
        assert len(read_state(str(folder / "out")).to_dict()) > 0
        assert read_state(str(folder / "out")).num_partitions == NUM
        write_input(folder / "in" / "b.parquet", 2)
        grown = prepare(server, folder)
        assert grown.plan.partitions[:NUM] == first.plan.partitions
        assert len(grown.plan.partitions) == NUM + 2
        assert [name.rpartition("-")[0] for name in plans(folder)] == [f"plan-{first.id}"]
        other = prepare(server, folder, restart=True)
        assert [name.rpartition("-")[0] for name in plans(folder)] == [f"plan-{other.id}"]


def test_a_plan_that_is_damaged_or_gone_is_told(folder: Path) -> None:
    """With what to do."""
    with SimulatedServer() as server:
        prepare(server, folder)
        path = next((folder / ".out.nemo_llm_stage").glob("plan-*-partitions.parquet"))
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(OutputConflictError, match="does not fit its checksum"):
            prepare(server, folder)
        path.unlink()
        with pytest.raises(OutputConflictError, match=r"plan-.*-partitions\.parquet"):
            prepare(server, folder)
