"""
A job: one stage over one input into one output folder, prepared and checked before anything is paid for.

The folder's record says what the job is; running again goes on from it, and refuses to mix another stage or input in.
Knows no Ray.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_llm_stage.config.arrow_type import arrow_type_of
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.bad_input import BadInput
from nemo_llm_stage.dataset.files import InputFile, find_input, folders_of
from nemo_llm_stage.dataset.folder import BAD_FILES, OutputFolder
from nemo_llm_stage.dataset.plan import OnScan, Partition, Plan, make_plan
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.dataset.tables import Table
from nemo_llm_stage.errors import InputError, OutputConflictError
from nemo_llm_stage.job.failure_limit import FailureLimit
from nemo_llm_stage.job.past import failed_before
from nemo_llm_stage.job.record import (
    as_written,
    check_same_input,
    check_version,
    compare_stage,
    extended_record,
    input_changes,
    new_files,
    open_output,
    read_plan,
    read_record,
    record_of,
    stage_differences,
)
from nemo_llm_stage.stage.stage import Stage


@dataclass(frozen=True)
class Job:
    """
    A job ready to run.

    Attributes:
        stage: Makes the columns.
        plan: The input's partitions.
        output: The output folder.
        committed: Names of the partitions' files that this job committed before this run.
        before: What these files count together.
        id: Written into each file, so that a file by a late worker of an earlier job is recognized.
        settings: How the job runs.
        notices: What a person should know before it starts.
    """

    stage: Stage
    plan: Plan
    output: OutputFolder
    committed: frozenset[str]
    before: Counters
    id: str
    settings: JobSettings
    notices: tuple[str, ...] = ()

    @property
    def pending(self) -> list[Partition]:
        """The partitions without a committed file."""
        return [partition for partition in self.plan.partitions if self.output.name_of(partition) not in self.committed]


def prepare_job(
    stage: Stage,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    settings: JobSettings,
    *,
    restart: bool = False,
    config: Mapping[str, Any] | None = None,
    on_scan: OnScan | None = None,
) -> Job:
    """
    Check everything that can be known before a request is paid for, and claim or reopen the output folder.

    Args:
        stage: Makes the columns.
        inputs: Files, globs or folders.
        output: Folder; made if it does not exist.
        settings: How the job runs. A resumed job keeps the partitions that it was planned with.
        restart: Discard the finished output and make it again. Kept or journaled raw answers are used for the
            requests that are still the same.
        config: The job file's settings, recorded for `retry-failed`; without secrets.
        on_scan: Told how many bytes of a text input were looked at, and of how many.

    Raises:
        InputError: The input cannot be read, or lacks a column.
        OutputConflictError: The folder cannot be written, or holds another job's output.
        FatalError: The server refuses the key or does not know the model.
        TransientError: The server cannot be reached.
    """
    if "://" not in str(output) and Path(output).is_file():
        raise OutputConflictError(f"the output {str(output)!r} is a file; choose a folder, which may be new.")
    folder = OutputFolder(str(output), settings.output_format)
    record = folder.read_job()
    if record is not None and folder.is_gone(record):  # the output was removed, its state beside it was not
        folder.forget_job()
        record = None
    found = find_input(inputs, {} if record is None or restart else record.get("versions"))
    files = found.files
    _check_apart(files, folders_of(inputs), str(output))
    bad_files: list[BadInput] = []
    changes: list[str] = []
    grown: dict[str, Any] | None = None
    if record is not None:
        check_version(record, folder.url)
        changes = compare_stage(record, stage, folder, restart=restart)
    folder.check_writable()
    if record is None or restart or (input_changes(record, files) and not folder.data_files()):
        sized = _with_partitions_of(record, settings)
        plan = plan_input(files, sized, bad_files.append, tables=found.tables, on_scan=on_scan)
        goes_on = False
    else:
        added = new_files(record, files) if settings.on_new_input == "add" else []
        paths = {file.path for file in added}
        check_same_input(record, [file for file in files if file.path not in paths], folder.url)
        plan = read_plan(record)
        bad_files = _left_out_before(folder, settings)
        goes_on = not changes
        if added and goes_on:
            plan = plan_input(added, settings, bad_files.append, onto=plan, on_scan=on_scan)
            grown = extended_record(record, plan)
            changes = [_growth(record, plan)]
    if record is not None and goes_on:
        stage = as_written(record, stage)
    stage.check_columns(plan.schema.names)
    job_id = record["id"] if record is not None and goes_on else uuid.uuid4().hex
    has_predecessor = "replaces" in (record or {})
    committed, before = folder.committed_by(job_id, has_predecessor=has_predecessor) if goes_on else (set(), Counters())
    notices = (*changes, *found.notices, *plan.notices, *(f"left out: {bad.reason}" for bad in bad_files))
    job = Job(stage, plan, folder, frozenset(committed), before, job_id, settings, notices)
    if job.pending:
        warning = failed_before(folder.state, job_id, FailureLimit(settings.max_failed_rows))
        job = replace(job, notices=(*([warning] if warning else ()), *notices))
        stage.check_server()
    if grown is not None:
        folder.write_bad_input(BAD_FILES, bad_files)
        folder.extend_job(grown)
    if not goes_on:
        folder.write_bad_input(BAD_FILES, bad_files)
        _claim(folder, record, record_of(job_id, stage, plan, settings.output_format, config))
    return job


def _claim(folder: OutputFolder, before: Mapping[str, Any] | None, record: dict[str, Any]) -> None:
    """Make the folder that of the job with this `record`, which may take the place of another."""
    if before is not None:
        folder.replace_job({**record, "replaces": before["id"]})
    elif not folder.write_job(record):
        raise OutputConflictError(f"another job has just begun to write {folder.url!r}; choose another output folder.")


def _check_apart(files: Sequence[InputFile], folders: Sequence[str], output: str) -> None:
    """Refuse an output within the input, or an input within the output: the one would become the other."""
    _, place = open_filesystem(output)
    inside = place.rstrip("/") + "/"
    for folder in folders:
        if inside.startswith(folder.rstrip("/") + "/"):
            raise OutputConflictError(
                f"the output {output!r} is in the input folder {folder!r}, and would be read as input; choose another."
            )
    for file in files:
        if open_filesystem(file.path)[1].startswith(inside):
            raise OutputConflictError(
                f"the input {file.path!r} is in the output folder {output!r}; choose another output folder."
            )


def _with_partitions_of(record: Mapping[str, Any] | None, settings: JobSettings) -> JobSettings:
    """Return settings by which a job that is planned anew has its partitions as before: there its raw answers are."""
    if record is None:
        return settings
    sizes = [num_rows for _, _, _, num_rows, *_ in record["partitions"]]
    return settings if None in sizes else replace(settings, rows_per_partition=max(1, *sizes))


def _growth(record: Mapping[str, Any], plan: Plan) -> str:
    """Say what new input files add to the job that `record` tells of."""
    num_files, num_before = len(plan.files) - len(record["files"]), len(record["partitions"])
    num_rows = plan.num_rows - record["num_rows"]
    about = "" if plan.is_exact else "about "
    return (
        f"{num_files:,} new input files with {about}{num_rows:,} rows are added: "
        f"{len(plan.partitions) - num_before:,} partitions after the {num_before:,} there are."
    )


def plan_input(
    files: Sequence[InputFile],
    settings: JobSettings,
    on_bad: Callable[[BadInput], None],
    *,
    tables: Sequence[Table] = (),
    onto: Plan | None = None,
    on_scan: OnScan | None = None,
) -> Plan:
    """
    Return the partitions of `files`, after those of `onto`; damaged files go to `on_bad` if the settings skip them.

    Raises:
        InputError: The input cannot be read.
    """
    return make_plan(
        files,
        rows_per_partition=settings.rows_per_partition,
        scan_input=settings.scan_input,
        on_bad=on_bad if settings.on_bad_input == "skip" else None,
        on_mixed_types=settings.on_mixed_types,
        column_types={name: arrow_type_of(text) for name, text in (settings.column_types or {}).items()},
        tables=tables,
        onto=onto,
        on_scan=on_scan,
    )


def prepare_retry(
    stage: Stage, output: str | Path, kinds: Collection[str], settings: JobSettings
) -> tuple[Job, list[Partition]]:
    """
    Return the finished job that wrote `output`, and its partitions that have failed rows to retry.

    Args:
        stage: The stage that the job ran.
        output: The job's folder.
        kinds: Kinds of failure to retry; none for all.
        settings: How the retry runs. The files' format and whether raw answers are kept stay as the job had them.

    Raises:
        OutputConflictError: No job has written there, or a job with another stage.
        TransientError: The server cannot be reached.
        FatalError: The server refuses the key or does not know the model.
    """
    folder, plan = open_output(str(output))
    record = read_record(str(output))
    differences = stage_differences(record, stage)
    if differences:
        raise OutputConflictError(
            f"{folder.url!r} holds the output of another stage:\n  " + "\n  ".join(differences) + "\n"
            "Only the same stage can retry its failed rows."
        )
    committed = frozenset(folder.committed())
    settings = replace(
        settings,
        output_format=record["output_format"],
        keep_raw=bool(folder.raw_folder().folders()),
        on_bad_input="skip",
    )
    job = Job(as_written(record, stage), plan, folder, committed, Counters(), record["id"], settings)
    wanted = [
        partition
        for partition in plan.partitions
        if folder.name_of(partition) in committed and _has_failed(folder, folder.name_of(partition), kinds)
    ]
    if wanted:
        stage.check_server()
    return job, wanted


def _left_out_before(folder: OutputFolder, settings: JobSettings) -> list[BadInput]:
    bad_files = folder.read_bad_input(BAD_FILES)
    if bad_files and settings.on_bad_input == "stop":
        raise InputError(f"an earlier run left a file out: {bad_files[0].reason} With on_bad_input: skip it goes on.")
    return bad_files


def _has_failed(folder: OutputFolder, name: str, kinds: Collection[str]) -> bool:
    errors = folder.read_counters(name).errors
    return any(kind in errors for kind in kinds) if kinds else bool(errors)
