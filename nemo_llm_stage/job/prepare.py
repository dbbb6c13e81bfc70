"""
A job: one stage over one input into one output folder, prepared and checked before anything is paid for.

The folder's record says what the job is; running again goes on from it, and refuses to mix another stage or input in.
Knows no Ray.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.account import Account, read_account
from nemo_llm_stage.dataset.files import InputFile, find_input, folders_of
from nemo_llm_stage.dataset.folder import BAD_FILES, OutputFolder
from nemo_llm_stage.dataset.layout import Layout
from nemo_llm_stage.dataset.plan import OnScan, Partition, Plan
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.errors import InputError, OutputConflictError
from nemo_llm_stage.job.failure_limit import FailureLimit
from nemo_llm_stage.job.past import failed_before
from nemo_llm_stage.job.planning import Planned, plan_anew, plan_on
from nemo_llm_stage.job.record import (
    as_written,
    check_version,
    compare_stage,
    input_changes,
    open_output,
    read_record,
    record_of,
    stage_differences,
    under_recorded_paths,
)
from nemo_llm_stage.stage.stage import Stage
from nemo_llm_stage.text import encodable


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
        account: What the ledger and the files told of `committed`.
    """

    stage: Stage
    plan: Plan
    output: OutputFolder
    committed: frozenset[str]
    before: Counters
    id: str
    settings: JobSettings
    notices: tuple[str, ...] = ()
    account: Account = field(default_factory=Account)

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
    before_check: Callable[[], None] | None = None,
    layout: Layout | None = None,
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
        before_check: Called before the servers are looked for, if there is anything to ask them: may start them.
        layout: Where the job's state is, if that is known.

    Raises:
        InputError: The input cannot be read, or lacks a column.
        OutputConflictError: The folder cannot be written, or holds another job's output.
        FatalError: The server refuses the key or does not know the model.
        TransientError: The server cannot be reached.
    """
    folder, record = _open_folder(output, settings.output_format, layout)
    found = find_input(inputs, {} if record is None or restart else record.get("versions"))
    _check_names(found.files, str(output))
    _check_apart(found.files, folders_of(inputs), str(output))
    changes: list[str] = []
    files: Sequence[InputFile] = found.files
    if record is not None:
        changes = compare_stage(record, stage, folder, restart=restart)
        files = under_recorded_paths(record, files)
    folder.check_writable(has_record=record is not None)
    if record is None or restart or (input_changes(record, files) and not folder.data_files()):
        planned = plan_anew(record, found, settings, changes, on_scan)
    else:
        planned = plan_on(record, files, folder, settings, changes, on_scan)
    job = _job_of(planned, stage, folder, settings, found.notices)
    if job.pending:
        if before_check is not None:
            before_check()
        job.stage.check_server()
    if planned.grown is not None or planned.goes_on_from is None:
        folder.write_bad_input(BAD_FILES, planned.bad_files)
    if planned.grown is not None:
        folder.extend_job(planned.grown)
    if planned.goes_on_from is None:
        _claim(folder, record, record_of(job.id, job.stage, job.plan, settings.output_format, config))
    return job


def _open_folder(
    output: str | Path, output_format: str, layout: Layout | None
) -> tuple[OutputFolder, dict[str, Any] | None]:
    """Return the output folder and the record of the job that it holds."""
    if "://" not in str(output) and Path(output).is_file():
        raise OutputConflictError(f"the output {str(output)!r} is a file; choose a folder, which may be new.")
    folder = OutputFolder(str(output), output_format, layout)
    record = folder.read_job()
    if record is not None:
        check_version(record, folder.url)
    if record is not None and folder.is_gone(record):  # the output was removed, its state beside it was not
        folder.forget_job()
        record = None
    return folder, record


def _job_of(planned: Planned, stage: Stage, folder: OutputFolder, settings: JobSettings, notices: Sequence[str]) -> Job:
    """Return the job with what is done of it already, and what a person should know before it starts."""
    record, plan = planned.goes_on_from, planned.plan
    stage = stage if record is None else as_written(record, stage)
    stage.check_columns(plan.schema.names)
    job_id, account = uuid.uuid4().hex, Account()
    if record is not None:
        job_id = record["id"]
        account = read_account(folder, job_id, has_predecessor="replaces" in record)
        account.raise_damage()
    left_out = (f"left out: {bad.reason}" for bad in planned.bad_files)
    told = (*planned.changes, *notices, *plan.notices, *left_out)
    committed, before = frozenset(account.entries), account.counters()
    job = Job(stage, plan, folder, committed, before, job_id, settings, told, account)
    if not job.pending:
        return job
    warning = failed_before(folder.state, job_id, FailureLimit(settings.max_failed_rows))
    return replace(job, notices=(*([warning] if warning else ()), *told))


def _claim(folder: OutputFolder, before: Mapping[str, Any] | None, record: dict[str, Any]) -> None:
    """Make the folder that of the job with this `record`, which may take the place of another."""
    if before is not None:
        folder.replace_job({**record, "replaces": before["id"]})
    elif not folder.write_job(record):
        raise OutputConflictError(f"another job has just begun to write {folder.url!r}; choose another output folder.")


def _check_names(files: Sequence[InputFile], output: str) -> None:
    """Refuse a path that is no text: JSON, Parquet and terminals cannot hold it."""
    for path in (output, *(file.path for file in files)):
        if encodable(path) != path:
            raise InputError(f"the path {path!r} is not UTF-8; rename it.")


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


def prepare_retry(
    stage: Stage,
    output: str | Path,
    kinds: Collection[str],
    settings: JobSettings,
    before_check: Callable[[], None] | None = None,
) -> tuple[Job, list[Partition]]:
    """
    Return the finished job that wrote `output`, and its partitions that have failed rows to retry.

    Args:
        stage: The stage that the job ran.
        output: The job's folder.
        kinds: Kinds of failure to retry; none for all.
        settings: How the retry runs. The files' format and whether raw answers are kept stay as the job had them.
        before_check: As for `prepare_job`.

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
    account = read_account(folder, record["id"])
    account.raise_damage()
    settings = replace(
        settings,
        output_format=record["output_format"],
        keep_raw=bool(folder.raw_folder().folders()),
        on_bad_input="skip",
    )
    job = Job(
        as_written(record, stage),
        plan,
        folder,
        frozenset(account.entries),
        Counters(),
        record["id"],
        settings,
        account=account,
    )
    failed = {name for name, entry in account.entries.items() if _has_failed(entry.counters, kinds)}
    wanted = [partition for partition in plan.partitions if folder.name_of(partition) in failed]
    if wanted:
        if before_check is not None:
            before_check()
        stage.check_server()
    return job, wanted


def _has_failed(counters: Counters, kinds: Collection[str]) -> bool:
    errors = counters.errors
    return any(kind in errors for kind in kinds) if kinds else bool(errors)
