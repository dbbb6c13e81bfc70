"""
A job: one stage over one input into one output folder, prepared and checked before anything is paid for.

The folder's record says what the job is; running again goes on from it, and refuses to mix another stage or input in.
Knows no Ray.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_llm_stage.core import Counters, sum_counters
from nemo_llm_stage.dataset.bad_input import BadInput
from nemo_llm_stage.dataset.files import find_files
from nemo_llm_stage.dataset.folder import BAD_FILES, OutputFolder
from nemo_llm_stage.dataset.journal import FLUSH_INTERVAL_S
from nemo_llm_stage.dataset.plan import Partition, Plan, make_plan
from nemo_llm_stage.errors import ConfigError, InputError, OutputConflictError
from nemo_llm_stage.job.record import (
    check_same_input,
    compare_stage,
    open_output,
    read_plan,
    read_record,
    record_of,
    stage_differences,
)
from nemo_llm_stage.stage.base import Stage

OUTPUT_FORMATS = ("parquet", "jsonl")
ON_BAD_INPUT = ("stop", "skip")
_NUM_THREADS = 16


@dataclass(frozen=True)
class Job:
    """
    A job ready to run.

    Attributes:
        stage: What is asked.
        plan: What of.
        output: Where to.
        committed: Names of the partitions' files that are there already.
        id: Told to each file, so that one by a worker of an earlier job, which wakes up late, is found out.
        keep_raw: Whether raw answers are kept after the commit.
        skips_bad_input: Whether input that cannot be read is left out and recorded; else it stops the run.
        flush_interval_s: See `Journal`.
        notices: What a person should know before it starts.
    """

    stage: Stage
    plan: Plan
    output: OutputFolder
    committed: frozenset[str]
    id: str
    keep_raw: bool = False
    skips_bad_input: bool = False
    flush_interval_s: float = FLUSH_INTERVAL_S
    notices: tuple[str, ...] = ()

    @property
    def pending(self) -> list[Partition]:
        """The partitions still to be run."""
        return [partition for partition in self.plan.partitions if self.output.name_of(partition) not in self.committed]

    def counters(self) -> Counters:
        """Return what the partitions committed before this run hold, from their files' own counts."""
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            return sum_counters(pool.map(self.output.read_counters, sorted(self.committed)))


def prepare_job(
    stage: Stage,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    output_format: str = "parquet",
    rows_per_partition: int | None = None,
    scan_input: str = "auto",
    restart: bool = False,
    keep_raw: bool = False,
    on_bad_input: str = "stop",
    flush_interval_s: float = FLUSH_INTERVAL_S,
    config: Mapping[str, Any] | None = None,
) -> Job:
    """
    Check everything that can be known before a request is paid for, and claim or re-open the output folder.

    Args:
        stage: What to ask.
        inputs: Files, globs or folders.
        output: Folder, made if it is not there.
        output_format: ``parquet`` or ``jsonl``.
        rows_per_partition: For a new job; a resumed one keeps its partitions.
        scan_input: See `make_plan`.
        restart: Throw the finished output away and make it anew. Raw answers that are kept or journaled are used for
            the requests that are still the same.
        keep_raw: Keep raw answers after the commit, so that a changed parser needs no request.
        on_bad_input: ``stop``, or ``skip`` to leave damaged files and broken lines out and record them.
        flush_interval_s: See `Journal`.
        config: The job file's settings, to be found again by `retry-failed`; without secrets.

    Raises:
        InputError: The input cannot be read, or lacks a column.
        OutputConflictError: The folder cannot be written, or holds another job's output.
        ConfigError: A setting cannot work.
        FatalError: The server does not take the key or the model.
        TransientError: The server cannot be reached.
    """
    _check_settings(output_format, rows_per_partition, on_bad_input, flush_interval_s)
    folder = OutputFolder(str(output), output_format)
    record = folder.read_job()
    files = find_files(inputs)
    bad_files: list[BadInput] = []
    if record is None:
        folder.check_writable()
        on_bad = bad_files.append if on_bad_input == "skip" else None
        plan = make_plan(files, rows_per_partition=rows_per_partition, scan_input=scan_input, on_bad=on_bad)
        changes: list[str] = []
    else:
        check_same_input(record, files, folder.url)
        plan = read_plan(record, files)
        changes = compare_stage(record, stage, folder, restart=restart)
        bad_files = _left_out_before(folder, on_bad_input)
        folder.check_writable()
    stage.check_columns(plan.schema.names)
    goes_on = record is not None and not restart and not changes
    committed = frozenset(folder.committed()) if goes_on else frozenset()
    job_id = record["id"] if record is not None and goes_on else uuid.uuid4().hex
    notices = (*changes, *(f"left out: {bad.reason}" for bad in bad_files))
    job = Job(
        stage, plan, folder, committed, job_id, keep_raw, on_bad_input == "skip", flush_interval_s, notices=notices
    )
    if job.pending:
        stage.check_server()
    if not goes_on:
        folder.write_bad_input(BAD_FILES, bad_files)
        claim = record_of(job_id, stage, plan, output_format, config)
        if record is not None:
            folder.replace_job(claim)
        elif not folder.write_job(claim):
            raise OutputConflictError(
                f"another job has just begun to write {folder.url!r}; choose another output folder."
            )
    return job


def prepare_retry(stage: Stage, output: str | Path, kinds: Collection[str]) -> tuple[Job, list[Partition]]:
    """
    Return the finished job that wrote `output`, and its partitions that have rows to ask again.

    Args:
        stage: The one that the job ran.
        output: The job's folder.
        kinds: Kinds of failure to ask again; none for all.

    Raises:
        OutputConflictError: No job has written there, or one with another stage.
        TransientError: The server cannot be reached.
        FatalError: The server does not take the key or the model.
    """
    folder, plan = open_output(str(output))
    record = read_record(str(output))
    differences = stage_differences(record, stage)
    if differences:
        raise OutputConflictError(
            f"{folder.url!r} holds the output of another stage:\n  " + "\n  ".join(differences) + "\n"
            "Only the same stage can ask its failed rows again."
        )
    committed = frozenset(folder.committed())
    has_raw = bool(folder.raw_folder().folders())
    job = Job(stage, plan, folder, committed, record["id"], keep_raw=has_raw, skips_bad_input=True)
    wanted = [
        partition
        for partition in plan.partitions
        if folder.name_of(partition) in committed and _has_failed(folder, folder.name_of(partition), kinds)
    ]
    if wanted:
        stage.check_server()
    return job, wanted


def _check_settings(
    output_format: str, rows_per_partition: int | None, on_bad_input: str, flush_interval_s: float
) -> None:
    if output_format not in OUTPUT_FORMATS:
        raise ConfigError(f"output_format is {output_format!r}; it must be one of {', '.join(OUTPUT_FORMATS)}.")
    if rows_per_partition is not None and rows_per_partition < 1:
        raise ConfigError(f"rows_per_partition is {rows_per_partition}; it must be at least 1.")
    if on_bad_input not in ON_BAD_INPUT:
        raise ConfigError(f"on_bad_input is {on_bad_input!r}; it must be one of {', '.join(ON_BAD_INPUT)}.")
    if flush_interval_s <= 0:
        raise ConfigError(f"flush_interval is {flush_interval_s}; it must be above 0 seconds.")


def _left_out_before(folder: OutputFolder, on_bad_input: str) -> list[BadInput]:
    bad_files = folder.read_bad_input(BAD_FILES)
    if bad_files and on_bad_input == "stop":
        raise InputError(f"an earlier run left a file out: {bad_files[0].reason} With on_bad_input: skip it goes on.")
    return bad_files


def _has_failed(folder: OutputFolder, name: str, kinds: Collection[str]) -> bool:
    errors = folder.read_counters(name).errors
    return any(kind in errors for kind in kinds) if kinds else bool(errors)
