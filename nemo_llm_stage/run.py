"""
`run_job`: files in, files out, on Ray or in this process.

Knows the order of a run: prepare, run the pending partitions, verify, mark as complete. Public keywords become one
`JobSettings` here, and only that object is passed on.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from nemo_llm_stage.config.job_settings import JobKeywords, JobSettings, WorkerKeywords, takes
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.verify import OnDone, Verification, verify
from nemo_llm_stage.errors import OutputConflictError
from nemo_llm_stage.finish import finish
from nemo_llm_stage.job.failure_limit import FailureLimit
from nemo_llm_stage.job.failures import FailureGroup, group_failures
from nemo_llm_stage.job.prepare import prepare_job, prepare_retry
from nemo_llm_stage.job.record import open_output, read_record
from nemo_llm_stage.job.result import JobResult
from nemo_llm_stage.report.metrics.publisher import Publisher
from nemo_llm_stage.report.progress.progress import Progress
from nemo_llm_stage.report.summary import summary
from nemo_llm_stage.serving import StartedServers, servers_of
from nemo_llm_stage.stage.llm_stage import LLMStage
from nemo_llm_stage.stage.multi import as_stage
from nemo_llm_stage.stage.stage import Stage
from nemo_llm_stage.watch import FailedBefore, WatchedRetry, WatchedRun
from nemo_llm_stage.worker.control.hold import before_of, keep_run, make_room

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
    how = JobSettings(**settings)
    with _progress(how, output, progress) as shown:
        start = _Start(restart=restart, takeover=takeover, shown=shown, servers=StartedServers(None, shown))
        return _run_job(as_stage(stage), input, output, how, start, config)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """
    How a run is started.

    Attributes:
        restart: See `run_job`; takeover likewise.
        shown: Shows how it goes.
        command: The command line that resumes it; None in Python.
        price_note: Where the prices come from; empty where they were given.
        servers: Those that the job starts.
    """

    shown: Progress
    servers: StartedServers
    restart: bool = False
    takeover: bool = False
    command: str | None = None
    price_note: str = ""


def _run_job(
    stage: Stage,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    settings: JobSettings,
    start: _Start,
    config: Mapping[str, Any] | None,
) -> JobResult:
    started_monotonic_s = time.monotonic()
    run = Counters()
    try:
        layout = OutputFolder(str(output)).layout
        dead = make_room(str(output), takeover=start.takeover, layout=layout)
        job = prepare_job(
            stage,
            inputs,
            output,
            settings,
            restart=start.restart,
            config=config,
            on_scan=start.shown.scan,
            before_check=partial(start.servers.start, stage),
            layout=layout,
        )
        before = job.before
        if not job.pending and job.output.is_complete():  # its status stays as the run that made it left it
            limit = FailureLimit(settings.max_failed_rows)
            _, elapsed_s = before_of(job.output.state, job.id)
            result = finish(job, before.num_rows, run, started_monotonic_s, limit, job_elapsed_s=elapsed_s)
        else:
            with keep_run(
                job,
                before=before,
                num_rows=job.plan.num_rows,
                command=start.command,
                takeover=start.takeover,
                dead=dead,
            ) as keeper:
                if job.pending:
                    job.output.remove_success()
                    run = WatchedRun(job, start.shown, keeper, start.servers).run()
                keeper.flush()
                limit = keeper.control.failure_limit
                result = finish(job, before.num_rows, run, started_monotonic_s, limit, job_elapsed_s=keeper.elapsed_s)
                result = replace(result, endpoints=keeper.endpoints, order=keeper.order)
    finally:
        stage.close()
    result = replace(result, price_note=start.price_note, cell=start.shown.cell)
    start.shown.finish(summary(result))
    return result


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
    how = JobSettings(**settings)
    with _progress(how, output, progress) as shown:
        return _retry_failed(as_stage(stage), output, kinds, how, shown, StartedServers(None, shown))


def _retry_failed(
    stage: Stage,
    output: str | Path,
    kinds: Collection[str],
    settings: JobSettings,
    shown: Progress,
    servers: StartedServers,
) -> JobResult:
    started_monotonic_s = time.monotonic()
    end_limit = FailureLimit(settings.max_failed_rows)
    try:
        dead = make_room(str(output), takeover=False)
        job, partitions = prepare_retry(stage, output, kinds, settings, partial(servers.start, stage))
        failed = FailedBefore.of(job, partitions, kinds)
        job = replace(job, settings=replace(job.settings, max_failed_rows=None))
        command = shlex.join(["nemo-llm-stage", "retry-failed", str(output)])
        with keep_run(job, before=Counters(), num_rows=failed.num_rows, command=command, dead=dead) as keeper:
            run = WatchedRetry(job, shown, keeper, servers, failed).run() if partitions else Counters()
            limit = end_limit if partitions or not kinds else None
            num_before = job.plan.num_rows - failed.num_rows
            result = finish(job, num_before, run, started_monotonic_s, limit, job_elapsed_s=keeper.elapsed_s)
            result = replace(result, endpoints=keeper.endpoints, order=keeper.order)
    finally:
        stage.close()
    result = replace(result, num_retried=failed.num_rows, cell=shown.cell)
    shown.finish(summary(result))
    return result


def run_config(
    config: JobConfig,
    *,
    restart: bool = False,
    takeover: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> JobResult:
    """Run the job that a job file or a command line describes, which `command` resumes; raises as `run_job`."""
    record = config.model_dump(mode="json")
    with _open(config, progress) as (stage, shown, servers):
        note = "" if config.list_price is None else config.list_price.words
        if note:
            shown.note(f"costs are told by the {note}; price_input and price_output change that.")
        start = _Start(
            restart=restart, takeover=takeover, shown=shown, command=command, price_note=note, servers=servers
        )
        return _run_job(stage, config.input, config.output, config.settings, start, record)


def _progress(settings: JobSettings, output: str | Path, is_shown: bool) -> Progress:
    publisher = Publisher(settings, str(output))
    return Progress(is_shown=is_shown, log_format=settings.log_format, publisher=publisher)


@contextmanager
def _open(config: JobConfig, is_shown: bool) -> Iterator[tuple[Stage, Progress, StartedServers]]:
    """Start what the job needs, and show that it starts; servers only once they are needed."""
    with _progress(config.settings, config.output, is_shown) as shown, servers_of(config, shown) as servers:
        if config.starts_model:
            shown.wait_for("the embedded model to load")
        with config.open_stage() as stage:
            yield stage, shown, servers


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
    with _open(config, progress) as (stage, shown, servers):
        return _retry_failed(stage, url, kinds, config.settings, shown, servers)


def head(url: str, num_rows: int) -> list[dict[str, Any]]:
    """Return the first rows of a job's output, at most `num_rows`."""
    return open_output(url)[0].head(num_rows)


def failures_of(url: str) -> list[FailureGroup]:
    """Return the failures in a job's committed files by kind and words; see `group_failures`."""
    return group_failures(url)


def verify_output(url: str, *, compares_rows: bool = False, on_done: OnDone | None = None) -> Verification:
    """
    Check the output folder of a job against its plan; see `verify`. Tells `on_done` how many files are looked at.

    Raises:
        OutputConflictError: No job of this package has written there.
    """
    return verify(*open_output(url), reads_bytes=True, compares_rows=compares_rows, on_done=on_done)
