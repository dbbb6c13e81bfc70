"""A job that is going wrong is stopped, says why, and can go on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import ConfigError, RunError
from nemo_llm_stage.errors import TooManyFailedRowsError
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
    assert not (job.folder / "out" / ".nemo_llm_stage" / "_SUCCESS").exists()


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


def test_a_fraction_of_few_rows_is_judged_at_the_end(job: Any) -> None:
    """Forty rows do not stop a run, so all are sent; a quarter of them failed is too much all the same."""
    job.server.faults = [Fault(400, contains="row 3")]
    with pytest.raises(TooManyFailedRowsError, match=r"the job has ended, but 11 of 40 rows failed"):
        job.run(max_failed_rows=0.05)
    assert job.server.stats.num_requests == 40
    assert job.run(output=job.folder / "other", max_failed_rows=0.3).counters.num_failed == 11


def test_a_job_whose_rows_all_failed_is_no_success_until_they_are_mended(job: Any) -> None:
    """The output stays with the causes in it; retry-failed mends the rows, and only then is the job a success."""
    stage = job.stage(parser=re.compile("never (x)"), max_reasks=0)
    with pytest.raises(TooManyFailedRowsError, match=r"40 of 40 rows failed[\s\S]* x parse: "):
        job.run(stage)
    success = job.folder / "out" / ".nemo_llm_stage" / "_SUCCESS"
    assert len(job.rows()) == 40
    assert not success.exists()
    with pytest.raises(TooManyFailedRowsError):
        job.retry(stage)
    assert not success.exists()
    with pytest.raises(TooManyFailedRowsError):  # nothing is left to be sent, and it is no success yet
        job.run(stage)
    job.run(stage, max_failed_rows=None)
    assert success.exists()


def test_retried_rows_that_are_answered_make_the_job_a_success(job: Any) -> None:
    """Whatever it came to before."""
    job.server.faults = [Fault(400, contains="row 3")]
    with pytest.raises(TooManyFailedRowsError):
        job.run()
    job.server.faults = []
    assert job.retry().counters.num_failed == 0
    assert (job.folder / "out" / ".nemo_llm_stage" / "_SUCCESS").exists()


@pytest.mark.parametrize("limit", [-1, 1.5, -0.1])
def test_a_limit_that_is_none_is_refused(job: Any, limit: float) -> None:
    """Before anything is read."""
    with pytest.raises(ConfigError, match="max_failed_rows"):
        job.run(max_failed_rows=limit)
