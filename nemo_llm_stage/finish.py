"""
The end of a job: check the output as a whole, mark it as complete, write what is to be read later.

Knows a prepared job and what a run of it counted; runs nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.account import Account, read_account, tidy_ledger
from nemo_llm_stage.dataset.folder import BAD_INPUT
from nemo_llm_stage.dataset.recount import explodes
from nemo_llm_stage.dataset.unchanged import check_unchanged
from nemo_llm_stage.dataset.verify import Verification, verify_account
from nemo_llm_stage.dataset.writing import writing_to
from nemo_llm_stage.errors import RunError
from nemo_llm_stage.job.failure_limit import FailureLimit
from nemo_llm_stage.job.prepare import Job
from nemo_llm_stage.job.result import GpuTime, JobResult
from nemo_llm_stage.report.summary_json import SUMMARY, write_summary

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Look:
    """
    What there is when a run has ended.

    Attributes:
        account: Of the committed files.
        files: Names of those in the state folder.
        folders: Likewise.
        was_complete: Whether the job was marked as complete.
        check_owner: Raises if the folder belongs to another job.
    """

    account: Account
    files: set[str]
    folders: set[str]
    was_complete: bool
    check_owner: Callable[[], None]


def _look(job: Job, *, has_run: bool) -> _Look:
    """Look at the output folder and its state, in a store side by side; at its files only if a run wrote some."""
    with writing_to(job.output.url), ThreadPoolExecutor(4) as pool:
        account = pool.submit(lambda: read_account(job.output, job.id) if has_run else job.account)
        contents = pool.submit(job.output.state.contents)
        is_complete = pool.submit(job.output.is_complete)
        owner = pool.submit(job.output.owner.check, job.id)
        return _Look(account.result(), *contents.result(), is_complete.result(), owner.result)


def _write_report(job: Job, verification: Verification, files: Collection[str], *, is_news: bool) -> None:
    """Write the report, if there is none or there is news. What goes wrong here is only logged: the job is done."""
    from nemo_llm_stage.report.page.render import PAGE, write_report

    try:
        if is_news or PAGE not in files:
            write_report(job.output.url, verification)
    except Exception:
        logger.warning("the report of %s could not be written", job.output.url, exc_info=True)


def _write_summary(job: Job, result: JobResult) -> None:
    """Likewise the summary for programs."""
    try:
        write_summary(job, result)
    except Exception:
        logger.warning("%s of %s could not be written", SUMMARY, job.output.url, exc_info=True)


def finish(
    job: Job,
    num_rows_before: int,
    run: Counters,
    started_monotonic_s: float,
    failure_limit: FailureLimit | None,
    *,
    job_elapsed_s: float,
) -> JobResult:
    """
    Check the output as a whole, and only then mark it as complete.

    One that is marked already is not judged anew. Without a `failure_limit` it is neither judged nor marked.
    `job_elapsed_s`: Seconds of all runs of the job.
    """
    if job.pending:
        check_unchanged(job.plan.files)
    look = _look(job, has_run=bool(job.pending or run.num_rows))
    verification = verify_account(
        job.output,
        job.plan,
        look.account,
        is_exploded=explodes({"stage": job.stage.describe()}),
        has_bad_input=BAD_INPUT in look.folders,
    )
    if not verification.is_complete:
        missing = f"{verification.num_missing} partitions are not committed yet; run the job again to resume it"
        problems = verification.problems or [missing]
        raise RunError("the output does not hold every row exactly once:\n  " + "\n  ".join(problems[:20]))
    look.check_owner()
    job.output.tidy(look.account.names, look.folders, keep_raw=job.settings.keep_raw)
    with writing_to(job.output.url):
        tidy_ledger(job.output, look.account)
    _write_report(job, verification, look.files, is_news=bool(run.num_rows) or not look.was_complete)
    if failure_limit is not None and not look.was_complete:
        failure_limit.check_end(verification.counters)
        job.output.write_success(job.id)
    settings = job.settings
    result = JobResult(
        output=job.output.url,
        counters=verification.counters,
        num_partitions=len(job.plan.partitions),
        num_rows_before=num_rows_before,
        elapsed_s=time.monotonic() - started_monotonic_s,
        columns=tuple(sorted(job.stage.required_columns)),
        output_columns=job.stage.output_columns,
        bad_files=verification.bad_files,
        left_out=verification.left_out,
        output_format=job.settings.output_format,
        this_run=run.without_resumed(),
        price_input=settings.price_input,
        price_output=settings.price_output,
        is_state_inside=not job.output.layout.has_marks,
        gpu_time=GpuTime.of(job_elapsed_s, settings.gpus, settings.gpu_price_per_hour),
    )
    if result.this_run.num_rows or SUMMARY not in look.files:  # a job that was finished before keeps the one it has
        _write_summary(job, result)
    return result
