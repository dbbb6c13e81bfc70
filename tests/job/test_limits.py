"""A job that is going wrong is stopped, says why, and can go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import ConfigError, RunError
from nemo_llm_stage.testing import Fault

Answers = Callable[..., list[str]]


def many_rows(job: Any) -> Path:
    path = Path(job.folder / "many.parquet")
    if path.exists():  # a job that goes on wants the very same file
        return path
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(3000)]}), path)
    return path


def test_too_many_failures_stop_the_job(job: Any) -> None:
    """Long before its end; failures are grouped by cause, with one example each."""
    job.server.faults = [Fault(400, rate=0.2), Fault("content_filter", rate=0.2)]
    with pytest.raises(RunError) as caught:
        job.run(input=many_rows(job), rows_per_partition=100)
    text = str(caught.value)
    assert "max_failed_rows = 0.05" in text
    assert " x bad_request: HTTP 400" in text
    assert " x content_filter: " in text
    assert job.server.stats.num_requests < 3000
    assert not (job.folder / "out" / "_SUCCESS").exists()


def test_a_stopped_job_goes_on_once_its_cause_is_mended(job: Any) -> None:
    """What had been answered is not asked again."""
    job.server.faults = [Fault(400, rate=0.2)]
    with pytest.raises(RunError, match="max_failed_rows"):
        job.run(input=many_rows(job), rows_per_partition=100)
    job.server.faults = []
    counters = job.run(input=many_rows(job), rows_per_partition=100, max_failed_rows=None).counters
    assert counters.num_rows == 3000
    assert job.server.stats.num_repaid <= 8  # in flight as it stopped


def test_a_count_of_failures_is_allowed_exactly(job: Any) -> None:
    """So many, and not one more."""
    job.server.faults = [Fault(400, contains="row 7"), Fault(400, contains="row 31")]
    assert job.run(max_failed_rows=2).counters.num_failed == 2
    with pytest.raises(RunError, match=r"2 of .* rows failed, more than max_failed_rows = 1"):
        job.run(output=job.folder / "other", max_failed_rows=1)


def test_a_fraction_says_nothing_of_a_few_rows(job: Any) -> None:
    """Forty rows, a quarter of them failed."""
    job.server.faults = [Fault(400, contains="row 3")]
    assert job.run(max_failed_rows=0.05).counters.num_failed == 11


@pytest.mark.parametrize("limit", [-1, 1.5, -0.1])
def test_a_limit_that_is_none_is_refused(job: Any, limit: float) -> None:
    """Before anything is read."""
    with pytest.raises(ConfigError, match="max_failed_rows"):
        job.run(max_failed_rows=limit)
