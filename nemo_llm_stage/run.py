"""
`run_job`: files in, files out, on Ray or in this process.

Knows the order of a run: prepare, run the pending partitions, verify, mark as complete. Public keywords become one
`JobSettings` here, and only that object is passed on.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from nemo_llm_stage.config.job_settings import JobKeywords, JobSettings, WorkerKeywords, takes
from nemo_llm_stage.core import Counters, sum_counters
from nemo_llm_stage.dataset.files import check_unchanged
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.verify import Verification, verify
from nemo_llm_stage.errors import OutputConflictError, RunError
from nemo_llm_stage.job.failure_limit import FailureLimit
from nemo_llm_stage.job.failures import FailureGroup, group_failures
from nemo_llm_stage.job.prepare import Job, prepare_job, prepare_retry
from nemo_llm_stage.job.record import open_output, read_record
from nemo_llm_stage.job.result import JobResult
from nemo_llm_stage.report.progress import Progress
from nemo_llm_stage.stage.llm_stage import LLMStage
from nemo_llm_stage.stage.multi import as_stage
from nemo_llm_stage.stage.stage import Stage
from nemo_llm_stage.worker.control.hold import keep_run, make_room
from nemo_llm_stage.worker.control.keeper import RunKeeper, Standing
from nemo_llm_stage.worker.engine import Engine, RunStatus
from nemo_llm_stage.worker.in_process import LocalEngine
from nemo_llm_stage.worker.interrupts import Interrupts, RunInterrupted
from nemo_llm_stage.worker.spec import WorkerSpec, spec_of

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from nemo_llm_stage.config.load import JobConfig


@takes(JobKeywords)
def run_job(
    *,
    stage: Stage | Sequence[LLMStage],
    input: str | Path | Sequence[str | Path],  # noqa: A002 - the word users write in a job file
    output: str | Path,
    restart: bool = False,
    takeover: bool = False,
    progress: bool = True,
    config: Mapping[str, Any] | None = None,
    **settings: Unpack[JobKeywords],
) -> JobResult:
    """
    Run `stage` over files into files, and return when every row is accounted for.

    Everything that can be checked is checked before a request is paid for. Each partition becomes one file in `output`;
    a file appears only when it is complete. Run the same job again to resume it.

    Args:
        stage: Makes the columns; a list of stages becomes a `MultiColumnStage`.
        input: Parquet or JSONL files (``.gz`` and ``.zst`` too), globs or folders; paths or fsspec URLs.
        output: Folder; made if it does not exist.
        restart: Discard the finished output and make it again.
        takeover: Stop another run that goes on in `output`, and take its place.
        progress: Whether to show progress on stderr.
        config: The job's settings, recorded for ``nemo-llm-stage retry-failed``; without secrets.
        settings: How the job runs: ``engine``, ``actors``, ``max_failed_rows`` and the other fields of
            `nemo_llm_stage.config.job_settings.JobSettings`, which explains them.

    Raises:
        ConfigError: The settings, the input or the output folder cannot work; no request was paid for.
        OutputBusyError: Another run goes on in `output`.
        RunStoppedError: A limit is reached, or somebody ordered the run to end; run the job again to resume it.
        RequestError: The server cannot be reached, or refuses every request.
        RunError: The run broke. Committed files stay; run the job again to resume it.
        RunInterrupted: Ctrl-C or SIGTERM came, and what was in flight is finished; a KeyboardInterrupt.
    """
    how = _Start(restart=restart, takeover=takeover, is_shown=progress)
    return _run_job(as_stage(stage), input, output, JobSettings(**settings), how, config)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """
    How a run is started.

    Attributes:
        restart: See `run_job`; takeover likewise.
        is_shown: Whether progress is shown.
        command: The command line that resumes it; None in Python.
    """

    restart: bool = False
    takeover: bool = False
    is_shown: bool = True
    command: str | None = None


def _run_job(
    stage: Stage,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    settings: JobSettings,
    start: _Start,
    config: Mapping[str, Any] | None,
) -> JobResult:
    started_monotonic_s = time.monotonic()
    try:
        make_room(str(output), takeover=start.takeover)
        job = prepare_job(stage, inputs, output, settings, restart=start.restart, config=config)
        before = job.before
        with keep_run(
            job, before=before, num_rows=job.plan.num_rows, command=start.command, takeover=start.takeover
        ) as keeper:
            if job.pending:
                job.output.remove_success()
                _run(job, spec_of(job), job.pending, before, keeper, is_shown=start.is_shown)
            keeper.flush()
            return _finish(job, before.num_rows, started_monotonic_s, keeper.control.failure_limit)
    finally:
        stage.close()


@takes(WorkerKeywords)
def retry_failed(
    *,
    stage: Stage | Sequence[LLMStage],
    output: str | Path,
    kinds: Collection[str] = (),
    progress: bool = True,
    **settings: Unpack[WorkerKeywords],
) -> JobResult:
    """
    Retry the failed rows of a job's output and replace them with the new results.

    Each file with such rows is replaced as a whole: a reader sees the old file or the new one. Can be stopped at any
    time and run again; answers are journaled as in a job.

    Args:
        stage: The stage that the job ran.
        output: The job's folder.
        kinds: Kinds of failure to retry (the word before the colon in the error column); none for all.
        progress: Whether to show progress on stderr.
        settings: ``engine``, ``actors``, ``num_cpus_per_actor``, ``address`` and ``flush_interval``, as for `run_job`.

    Raises:
        OutputConflictError: No job has written there, or a job with another stage.
        RequestError: The server cannot be reached, or refuses every request.
        RunError: The run broke, or partitions of the job are still missing.
    """
    return _retry_failed(as_stage(stage), output, kinds, JobSettings(**settings), progress)


def _retry_failed(
    stage: Stage, output: str | Path, kinds: Collection[str], settings: JobSettings, progress: bool
) -> JobResult:
    started_monotonic_s = time.monotonic()
    end_limit = FailureLimit(settings.max_failed_rows)
    try:
        make_room(str(output), takeover=False)
        job, partitions = prepare_retry(stage, output, kinds, settings)
        num_failed = sum(_num_failed(job.output.read_counters(job.output.name_of(part)), kinds) for part in partitions)
        spec = replace(spec_of(job), retry_kinds=frozenset(kinds))
        job = replace(job, settings=replace(job.settings, max_failed_rows=None))
        command = shlex.join(["nemo-llm-stage", "retry-failed", str(output)])
        with keep_run(job, before=Counters(), num_rows=num_failed, command=command, takeover=False) as keeper:
            if partitions:
                _run(job, spec, partitions, Counters(), keeper, is_shown=progress)
            result = _finish(job, job.plan.num_rows - num_failed, started_monotonic_s, end_limit)
    finally:
        stage.close()
    return replace(result, num_retried=num_failed)


def _engine(settings: JobSettings) -> Engine:
    if settings.engine == "local":
        return LocalEngine(settings.actors)
    from nemo_llm_stage.cluster.ray_engine import RayEngine

    return RayEngine(settings.actors, settings.num_cpus_per_actor, settings.address)


def run_config(
    config: JobConfig,
    *,
    restart: bool = False,
    takeover: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> JobResult:
    """Run the job that a job file or a command line describes, which `command` resumes; raises as `run_job`."""
    start = _Start(restart=restart, takeover=takeover, is_shown=progress, command=command)
    with config.open_stage() as stage:
        record = config.model_dump(mode="json")
        return _run_job(stage, config.input, config.output, config.settings, start, record)


def retry_output(url: str, kinds: Collection[str], *, progress: bool = True) -> JobResult:
    """
    Retry the failed rows of a job that was run from a job file or a command line; raises as `retry_failed`.

    Raises:
        OutputConflictError: The job was run from Python, so only Python knows its stage.
    """
    from nemo_llm_stage.config.load import make_config

    recorded = read_record(url)["config"]
    if recorded is None:
        raise OutputConflictError(
            f"the job in {url!r} was run from Python; retry its failed rows there, with retry_failed(stage=…)."
        )
    config = make_config(recorded, f"the job in {url!r}", is_record=True)
    with config.open_stage() as stage:
        return _retry_failed(stage, url, kinds, config.settings, progress)


def head(url: str, num_rows: int) -> list[dict[str, Any]]:
    """Return the first rows of a job's output, at most `num_rows`."""
    return open_output(url)[0].head(num_rows)


def failures_of(url: str) -> list[FailureGroup]:
    """Return the failures in a job's committed files by kind and words; see `group_failures`."""
    return group_failures(url)


def verify_output(url: str, *, compares_rows: bool = False) -> Verification:
    """
    Check the output folder of a job against its plan; see `verify`.

    Raises:
        OutputConflictError: No job of this package has written there.
    """
    return verify(*open_output(url), reads_bytes=True, compares_rows=compares_rows)


def _num_failed(counters: Counters, kinds: Collection[str]) -> int:
    return sum(num for kind, num in counters.errors.items() if not kinds or kind in kinds)


def _run(
    job: Job,
    spec: WorkerSpec,
    partitions: Sequence[Partition],
    before: Counters,
    keeper: RunKeeper,
    *,
    is_shown: bool,
) -> None:
    """Run `partitions`, show progress and check the limits. `before` counts the rows of earlier runs."""
    engine, control = _engine(job.settings), keeper.control
    done = Counters()
    num_rows = keeper.num_rows
    progress = Progress(num_rows, is_exact=job.plan.is_exact, num_rows_before=before.num_rows, is_shown=is_shown)
    num_kept = num_committed = 0
    with progress as shown, Interrupts(job.settings.grace_period, control) as interrupts:
        for notice in job.notices:
            shown.note(notice)

        def monitor(status: RunStatus) -> None:
            nonlocal num_kept
            interrupts.check()
            run = sum_counters([done, status.open])
            num_kept = run.num_rows
            total = sum_counters([before, run])
            shown.update(total, status.num_in_flight, status.trouble)
            keeper.update(Standing(status.phase, total, status.stage))
            control.check(run)

        for report in engine.run(spec, partitions, monitor, interrupts):
            num_committed += 1
            done.add(report.counters if report.is_first else job.output.read_counters(report.name))
            control.failure_limit.check(done)
        keeper.update(Standing("running", sum_counters([before, done])))
        if num_committed < len(partitions):
            words = _stopped_words(before.num_rows + done.num_rows, num_kept - done.num_rows, num_rows)
            if interrupts.signum is not None:
                raise RunInterrupted(words, interrupts.signum)
            control.raise_end(words)
        if spec.retry_kinds is None:
            shown.update(sum_counters([before, done]), 0)


def _stopped_words(num_committed: int, num_kept: int, num_rows: int) -> str:
    kept = f", {num_kept:,} more rows are answered and kept" if num_kept > 0 else ""
    return f"stopped: {num_committed:,} of {num_rows:,} rows are committed{kept}; run the same command again to go on."


def _write_report(job: Job, verification: Verification) -> None:
    """Write the report. The job is done by then, so what goes wrong here is only logged."""
    from nemo_llm_stage.report.page.render import write_report

    try:
        write_report(job.output.url, verification)
    except Exception:
        logger.warning("the report of %s could not be written", job.output.url, exc_info=True)


def _finish(job: Job, num_rows_before: int, started_monotonic_s: float, failure_limit: FailureLimit) -> JobResult:
    """Check the output as a whole, and only then mark it as complete. One that is marked already is not judged anew."""
    if job.pending:
        check_unchanged(job.plan.files)
    verification = verify(job.output, job.plan)
    if not verification.is_complete:
        missing = f"{verification.num_missing} partitions are not committed yet; run the job again to go on"
        problems = verification.problems or [missing]
        raise RunError("the output does not hold every row exactly once:\n  " + "\n  ".join(problems[:20]))
    job.output.tidy(keep_raw=job.settings.keep_raw)
    _write_report(job, verification)
    if not job.output.is_complete():
        failure_limit.check_end(verification.counters)
        job.output.write_success()
    return JobResult(
        output=job.output.url,
        counters=verification.counters,
        num_partitions=len(job.plan.partitions),
        num_rows_before=num_rows_before,
        elapsed_s=time.monotonic() - started_monotonic_s,
        columns=tuple(sorted(job.stage.required_columns)),
        output_columns=job.stage.output_columns,
        bad_files=verification.bad_files,
        left_out=verification.left_out,
    )
