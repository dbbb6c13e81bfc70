"""
`run_job`: files in, files out, on Ray or in this process.

Knows the order of a run: prepare, run the pending partitions, verify, mark as complete.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nemo_llm_stage.core import Counters, sum_counters
from nemo_llm_stage.dataset.verify import Verification, verify
from nemo_llm_stage.errors import ConfigError, RunError
from nemo_llm_stage.job.engine import Engine, LocalEngine, Status
from nemo_llm_stage.job.job import Job, open_output, prepare_job
from nemo_llm_stage.report.progress import Progress
from nemo_llm_stage.stage.stage import LLMStage

if TYPE_CHECKING:
    from nemo_llm_stage.job.config import JobConfig


@dataclass(frozen=True)
class JobResult:
    """
    What a job's output holds, and what this run took.

    Attributes:
        output: Path or URL of the folder.
        counters: Over all committed files, this run's and earlier ones'.
        num_partitions: Committed files.
        num_rows_before: Rows of files that earlier runs had committed.
        elapsed_s: Seconds of this run, from the call to the last check.
        columns: The input columns that the prompt uses.
    """

    output: str
    counters: Counters = field(default_factory=Counters)
    num_partitions: int = 0
    num_rows_before: int = 0
    elapsed_s: float = 0.0
    columns: tuple[str, ...] = ()


def run_job(
    *,
    stage: LLMStage,
    input: str | Path | Sequence[str | Path],  # noqa: A002 - the word users write in a job file
    output: str | Path,
    engine: Literal["ray", "local"] = "ray",
    actors: int = 1,
    num_cpus_per_actor: float = 0.5,
    address: str | None = None,
    output_format: str = "parquet",
    rows_per_partition: int | None = None,
    scan_input: str = "auto",
    progress: bool = True,
) -> JobResult:
    """
    Run `stage` over files into files, and return when every row is accounted for.

    Everything that can be checked is checked before a request is paid for. Each partition becomes one file in `output`,
    whole from the moment it is visible. Running the same job again goes on where it stopped.

    Args:
        stage: What to ask.
        input: Parquet or JSONL files (``.gz`` and ``.zst`` too), globs or folders; paths or fsspec URLs.
        output: Folder.
        engine: ``ray``, or ``local`` for one worker in this process without Ray.
        actors: Ray actors; each has a client and a limit of its own.
        num_cpus_per_actor: Reserved in Ray for each.
        address: Ray cluster to join; None takes ``RAY_ADDRESS``, or starts Ray on this machine.
        output_format: ``parquet`` or ``jsonl``.
        rows_per_partition: None takes about 64 partitions of 128 to 10,000 rows.
        scan_input: ``auto``, ``full`` or ``sample``: how much of a JSONL input is read for its types beforehand.
        progress: Whether to show progress on stderr.

    Raises:
        ConfigError: The settings, the input or the output folder cannot work; nothing was paid for.
        RequestError: The server cannot be reached, or refuses every request.
        RunError: The run broke; what is committed stays, and running again goes on from it.
    """
    started_monotonic_s = time.monotonic()
    runner = _engine(engine, actors, num_cpus_per_actor, address)
    try:
        job = prepare_job(
            stage,
            input,
            output,
            output_format=output_format,
            rows_per_partition=rows_per_partition,
            scan_input=scan_input,
        )
        num_rows_before = _run_pending(job, runner, is_shown=progress)
    finally:
        stage.close()
    result = _finish(job)
    return JobResult(
        output=job.output.url,
        counters=result,
        num_partitions=len(job.plan.partitions),
        num_rows_before=num_rows_before,
        elapsed_s=time.monotonic() - started_monotonic_s,
        columns=tuple(sorted(stage.prompt.required_columns)),
    )


def _engine(name: str, actors: int, num_cpus_per_actor: float, address: str | None) -> Engine:
    if name == "local":
        return LocalEngine()
    if name != "ray":
        raise ConfigError(f"engine is {name!r}; it must be 'ray' or 'local'.")
    if actors < 1:
        raise ConfigError(f"actors is {actors}; it must be at least 1.")
    from nemo_llm_stage.cluster.engine import RayEngine

    return RayEngine(actors, num_cpus_per_actor, address)


def run_config(config: JobConfig, *, progress: bool = True) -> JobResult:
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
            progress=progress,
        )


def head(url: str, num_rows: int) -> list[dict[str, Any]]:
    """Return the first rows of a job's output, at most `num_rows`."""
    return open_output(url)[0].head(num_rows)


def verify_output(url: str) -> Verification:
    """
    Check the output folder of a job against its plan.

    Raises:
        OutputConflictError: No job of this package has written there.
    """
    return verify(*open_output(url))


def _run_pending(job: Job, engine: Engine, *, is_shown: bool) -> int:
    """Run what is not committed yet, and return how many rows had been committed before."""
    committed = job.counters()
    num_rows_before = committed.num_rows
    if not job.pending:
        return num_rows_before
    job.output.remove_success()
    with Progress(
        job.plan.num_rows, is_exact=job.plan.is_exact, num_rows_before=num_rows_before, is_shown=is_shown
    ) as shown:

        def monitor(status: Status) -> None:
            shown.update(sum_counters([committed, status.open]), status.num_in_flight, status.trouble)

        for report in engine.run(job.spec, job.pending, monitor):
            committed.add(report.counters if report.is_first else job.output.read_counters(report.name))
        shown.update(committed, 0)
    return num_rows_before


def _finish(job: Job) -> Counters:
    verification = verify(job.output, job.plan)
    if not verification.is_complete:
        problems = verification.problems or [f"{verification.num_missing} partitions are missing"]
        raise RunError("the output does not hold every row exactly once:\n  " + "\n  ".join(problems[:20]))
    if not job.output.folder.exists("_SUCCESS"):
        job.output.write_success()
    return verification.counters
