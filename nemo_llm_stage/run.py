"""
`run_job`: files in, files out, on Ray or in this process.

Knows the order of a run: prepare, run the pending partitions, verify, mark as complete.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nemo_llm_stage.core import Counters, sum_counters
from nemo_llm_stage.dataset.folder import SUCCESS
from nemo_llm_stage.dataset.journal import FLUSH_INTERVAL_S
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.verify import Verification, verify
from nemo_llm_stage.errors import ConfigError, OutputConflictError, RunError
from nemo_llm_stage.job.failure_limit import FailureLimit
from nemo_llm_stage.job.prepare import Job, prepare_job, prepare_retry
from nemo_llm_stage.job.record import open_output, read_record
from nemo_llm_stage.job.result import JobResult
from nemo_llm_stage.report.progress import Progress
from nemo_llm_stage.stage.base import Stage
from nemo_llm_stage.stage.multi import as_stage
from nemo_llm_stage.stage.stage import LLMStage
from nemo_llm_stage.worker.engine import Engine, Status
from nemo_llm_stage.worker.in_process import LocalEngine
from nemo_llm_stage.worker.spec import WorkerSpec, spec_of

if TYPE_CHECKING:
    from nemo_llm_stage.config.load import JobConfig


def run_job(
    *,
    stage: Stage | Sequence[LLMStage],
    input: str | Path | Sequence[str | Path],  # noqa: A002 - the word users write in a job file
    output: str | Path,
    engine: Literal["ray", "local"] = "ray",
    actors: int = 1,
    num_cpus_per_actor: float = 0.5,
    address: str | None = None,
    output_format: str = "parquet",
    rows_per_partition: int | None = None,
    scan_input: str = "auto",
    max_failed_rows: float | None = 0.05,
    keep_raw: bool = False,
    on_bad_input: Literal["stop", "skip"] = "stop",
    flush_interval: float = FLUSH_INTERVAL_S,
    restart: bool = False,
    progress: bool = True,
    config: Mapping[str, Any] | None = None,
) -> JobResult:
    """
    Run `stage` over files into files, and return when every row is accounted for.

    Everything that can be checked is checked before a request is paid for. Each partition becomes one file in `output`,
    whole from the moment it is visible. Running the same job again goes on where it stopped.

    Args:
        stage: What to ask; a list of stages becomes a `MultiColumnStage`.
        input: Parquet or JSONL files (``.gz`` and ``.zst`` too), globs or folders; paths or fsspec URLs.
        output: Folder.
        engine: ``ray``, or ``local`` for workers in this process without Ray.
        actors: Workers, in actors of Ray; each has a client and a limit of its own.
        num_cpus_per_actor: Reserved in Ray for each.
        address: Ray cluster to join; None takes ``RAY_ADDRESS``, or starts Ray on this machine.
        output_format: ``parquet`` or ``jsonl``.
        rows_per_partition: None takes about 64 partitions of 1,000 to 10,000 rows.
        scan_input: ``auto``, ``full`` or ``sample``: how much of a JSONL input is read for its types beforehand.
        max_failed_rows: Stops the run when this many rows (an int) or this fraction of them (a float, from 200 rows
            on) have failed; None never does.
        keep_raw: Keep the raw answers beside the output, so that a changed parser needs no request.
        on_bad_input: ``stop`` ends the run at a damaged file or a broken line; ``skip`` leaves it out and writes down
            file, line and reason in the output's ``_nemo_llm_stage/bad_input/``.
        flush_interval: Seconds; on an object store a worker that dies takes the answers of so long with it.
        restart: Throw finished output away and make it anew.
        progress: Whether to show progress on stderr.
        config: The settings to be found again by ``nemo-llm-stage retry-failed``; no secrets.

    Raises:
        ConfigError: The settings, the input or the output folder cannot work; nothing was paid for.
        RequestError: The server cannot be reached, or refuses every request.
        RunError: The run broke; what is committed stays, and running again goes on from it.
    """
    started_monotonic_s = time.monotonic()
    stage = as_stage(stage)
    runner = _engine(engine, actors, num_cpus_per_actor, address)
    failure_limit = FailureLimit(max_failed_rows)
    try:
        job = prepare_job(
            stage,
            input,
            output,
            output_format=output_format,
            rows_per_partition=rows_per_partition,
            scan_input=scan_input,
            restart=restart,
            keep_raw=keep_raw,
            on_bad_input=on_bad_input,
            flush_interval_s=flush_interval,
            config=config,
        )
        before = job.counters()
        if job.pending:
            job.output.remove_success()
            _run(job, runner, spec_of(job), job.pending, before, failure_limit, is_shown=progress)
    finally:
        stage.close()
    return _finish(job, before.num_rows, started_monotonic_s)


def retry_failed(
    *,
    stage: Stage | Sequence[LLMStage],
    output: str | Path,
    kinds: Collection[str] = (),
    engine: Literal["ray", "local"] = "ray",
    actors: int = 1,
    num_cpus_per_actor: float = 0.5,
    address: str | None = None,
    flush_interval: float = FLUSH_INTERVAL_S,
    progress: bool = True,
) -> JobResult:
    """
    Ask only the failed rows of a job's output again, and put what they come to in their places.

    Each file that has such rows is replaced as a whole: a reader sees the old one or the new one. Can be stopped at any
    time and run again; answers are journaled as in a job.

    Args:
        stage: The one that the job ran.
        output: The job's folder.
        kinds: Kinds of failure (the word before the colon in the error column); none for all.
        engine: As for `run_job`.
        actors: As for `run_job`.
        num_cpus_per_actor: As for `run_job`.
        address: As for `run_job`.
        flush_interval: As for `run_job`.
        progress: Whether to show progress on stderr.

    Raises:
        OutputConflictError: No job wrote there, or one with another stage.
        RequestError: The server cannot be reached, or refuses every request.
        RunError: The run broke, or partitions of the job are still missing.
    """
    started_monotonic_s = time.monotonic()
    stage = as_stage(stage)
    runner = _engine(engine, actors, num_cpus_per_actor, address)
    try:
        job, partitions = prepare_retry(stage, output, kinds)
        num_to_ask = sum(_num_failed(job.output.read_counters(job.output.name_of(part)), kinds) for part in partitions)
        spec = replace(spec_of(job), retry_kinds=frozenset(kinds), flush_interval_s=flush_interval)
        if partitions:
            _run(job, runner, spec, partitions, Counters(), FailureLimit(None), is_shown=progress, num_rows=num_to_ask)
    finally:
        stage.close()
    return _finish(job, job.plan.num_rows - num_to_ask, started_monotonic_s)


def _engine(name: str, actors: int, num_cpus_per_actor: float, address: str | None) -> Engine:
    if actors < 1:
        raise ConfigError(f"actors is {actors}; it must be at least 1.")
    if name == "local":
        return LocalEngine(actors)
    if name != "ray":
        raise ConfigError(f"engine is {name!r}; it must be 'ray' or 'local'.")
    from nemo_llm_stage.cluster.ray_engine import RayEngine

    return RayEngine(actors, num_cpus_per_actor, address)


def run_config(config: JobConfig, *, restart: bool = False, progress: bool = True) -> JobResult:
    """Run the job that a job file or a command line describes; raises as `run_job`."""
    with config.open_stage() as stage:
        return run_job(
            stage=stage,
            input=config.input,
            output=config.output,
            engine=config.engine,
            actors=config.actors,
            num_cpus_per_actor=config.num_cpus_per_actor,
            address=config.address,
            output_format=config.output_format,
            rows_per_partition=config.rows_per_partition,
            scan_input=config.scan_input,
            max_failed_rows=config.max_failed_rows,
            keep_raw=config.keep_raw,
            on_bad_input=config.on_bad_input,
            flush_interval=config.flush_interval,
            restart=restart,
            progress=progress,
            config=config.model_dump(mode="json"),
        )


def retry_output(url: str, kinds: Collection[str], *, progress: bool = True) -> JobResult:
    """
    Ask the failed rows of a job again that was run from a job file or a command line; raises as `retry_failed`.

    Raises:
        OutputConflictError: The job was run from Python, so its stage is known only there.
    """
    from nemo_llm_stage.config.load import make_config

    settings = read_record(url)["config"]
    if settings is None:
        raise OutputConflictError(
            f"the job in {url!r} was run from Python; ask its failed rows again there, with retry_failed(stage=…)."
        )
    config = make_config(settings, f"the job in {url!r}")
    with config.open_stage() as stage:
        return retry_failed(
            stage=stage,
            output=url,
            kinds=kinds,
            engine=config.engine,
            actors=config.actors,
            num_cpus_per_actor=config.num_cpus_per_actor,
            address=config.address,
            flush_interval=config.flush_interval,
            progress=progress,
        )


def head(url: str, num_rows: int) -> list[dict[str, Any]]:
    """Return the first rows of a job's output, at most `num_rows`."""
    return open_output(url)[0].head(num_rows)


def verify_output(url: str, *, compares_rows: bool = False) -> Verification:
    """
    Check the output folder of a job against its plan; see `verify`.

    Raises:
        OutputConflictError: No job of this package has written there.
    """
    return verify(*open_output(url), compares_rows=compares_rows)


def _num_failed(counters: Counters, kinds: Collection[str]) -> int:
    return sum(num for kind, num in counters.errors.items() if not kinds or kind in kinds)


def _run(
    job: Job,
    engine: Engine,
    spec: WorkerSpec,
    partitions: Sequence[Partition],
    before: Counters,
    failure_limit: FailureLimit,
    *,
    is_shown: bool,
    num_rows: int | None = None,
) -> None:
    """Run `partitions`, and show and watch how they do. `before` counts the rows that were finished already."""
    done = Counters()
    num_rows = job.plan.num_rows if num_rows is None else num_rows
    progress = Progress(num_rows, is_exact=job.plan.is_exact, num_rows_before=before.num_rows, is_shown=is_shown)
    with progress as shown:
        for notice in job.notices:
            shown.note(notice)

        def monitor(status: Status) -> None:
            run = sum_counters([done, status.open])
            shown.update(sum_counters([before, run]), status.num_in_flight, status.trouble)
            failure_limit.check(run)

        for report in engine.run(spec, partitions, monitor):
            done.add(report.counters if report.is_first else job.output.read_counters(report.name))
            failure_limit.check(done)
        if spec.retry_kinds is None:
            shown.update(sum_counters([before, done]), 0)


def _finish(job: Job, num_rows_before: int, started_monotonic_s: float) -> JobResult:
    """Check the output as a whole, and only then mark it as complete."""
    verification = verify(job.output, job.plan)
    if not verification.is_complete:
        missing = f"{verification.num_missing} partitions are not committed yet; run the job again to go on"
        problems = verification.problems or [missing]
        raise RunError("the output does not hold every row exactly once:\n  " + "\n  ".join(problems[:20]))
    job.output.tidy(keep_raw=job.keep_raw)
    if not job.output.folder.exists(SUCCESS):
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
