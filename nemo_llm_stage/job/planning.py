"""
Which partitions a job has: those of a new plan, those that its record holds, or these and more.

Knows records and the input; writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemo_llm_stage.config.arrow_type import arrow_type_of
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.dataset.bad_input import BadInput
from nemo_llm_stage.dataset.files import FoundFiles, InputFile
from nemo_llm_stage.dataset.folder import BAD_FILES, OutputFolder
from nemo_llm_stage.dataset.plan import OnScan, Plan, make_plan
from nemo_llm_stage.dataset.tables import Table
from nemo_llm_stage.errors import InputError
from nemo_llm_stage.job.record import check_same_input, extended_record, new_files, read_plan


@dataclass(frozen=True, slots=True)
class Planned:
    """
    What is to be done.

    Attributes:
        plan: The whole input.
        bad_files: Left out of it.
        changes: What differs from what the folder holds, for people.
        goes_on_from: The record of the job that goes on; None for a new one.
        grown: That record with new input files; None where there are none.
    """

    plan: Plan
    bad_files: list[BadInput]
    changes: list[str]
    goes_on_from: dict[str, Any] | None = None
    grown: dict[str, Any] | None = None


def plan_anew(
    record: Mapping[str, Any] | None,
    found: FoundFiles,
    settings: JobSettings,
    changes: list[str],
    on_scan: OnScan | None,
) -> Planned:
    """Plan a new job; `record` is that of the one before it, and `changes` are what differs from that."""
    bad_files: list[BadInput] = []
    sized = _with_partitions_of(record, settings)
    plan = plan_input(found.files, sized, bad_files.append, tables=found.tables, on_scan=on_scan)
    return Planned(plan, bad_files, changes)


def plan_on(
    record: dict[str, Any],
    files: Sequence[InputFile],
    folder: OutputFolder,
    settings: JobSettings,
    changes: list[str],
    on_scan: OnScan | None,
) -> Planned:
    """Plan by `record`; with `changes`, as another job over the same partitions."""
    added = new_files(record, files) if settings.on_new_input == "add" else []
    paths = {file.path for file in added}
    check_same_input(record, [file for file in files if file.path not in paths], folder.url)
    plan, bad_files = read_plan(record), _left_out_before(folder, settings)
    if changes:
        return Planned(plan, bad_files, changes)
    if not added:
        return Planned(plan, bad_files, [], record)
    plan = plan_input(added, settings, bad_files.append, onto=plan, on_scan=on_scan)
    return Planned(plan, bad_files, [_growth(record, plan)], record, extended_record(record, plan))


def _with_partitions_of(record: Mapping[str, Any] | None, settings: JobSettings) -> JobSettings:
    """Return settings by which a job that is planned anew has its partitions as before: there its raw answers are."""
    if record is None:
        return settings
    sizes = [num_rows for _, _, _, num_rows, *_ in record["partitions"]]
    return settings if None in sizes else replace(settings, rows_per_partition=max(1, *sizes))


def _growth(record: Mapping[str, Any], plan: Plan) -> str:
    """Say what new input files add to the job of `record`."""
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


def _left_out_before(folder: OutputFolder, settings: JobSettings) -> list[BadInput]:
    bad_files = folder.read_bad_input(BAD_FILES)
    if bad_files and settings.on_bad_input == "stop":
        raise InputError(f"an earlier run left a file out: {bad_files[0].reason} With on_bad_input: skip it goes on.")
    return bad_files
