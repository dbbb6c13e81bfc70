"""
What a job writes of itself into its output folder, and how another run tells whether it may go on with it.

Knows plans and stages; asks nobody.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from nemo_llm_stage.client.credentials import without_request_secrets
from nemo_llm_stage.dataset.account import read_account
from nemo_llm_stage.dataset.files import InputFile
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.layout import MARKS
from nemo_llm_stage.dataset.owner import damaged_record
from nemo_llm_stage.dataset.plan import Partition, Plan
from nemo_llm_stage.dataset.plan_file import PLAN_VERSION
from nemo_llm_stage.dataset.recount import skips_are_errors
from nemo_llm_stage.errors import InputError, OutputConflictError
from nemo_llm_stage.job.past import paid_words
from nemo_llm_stage.stage.stage import Stage

FORMAT_VERSION = 3
_KNOWN_VERSIONS = (2, FORMAT_VERSION, PLAN_VERSION)
"""An output goes on in the version that it was begun in; of 2, ``X_error`` also says why a row was skipped."""


def open_output(url: str) -> tuple[OutputFolder, Plan]:
    """
    Return the output folder of a job that has begun, and the job's plan.

    Raises:
        OutputConflictError: No job has written there, or its record is damaged.
    """
    output, record = _open(url)
    try:
        return OutputFolder(url, record["output_format"], output.layout), read_plan(record)
    except (KeyError, IndexError, TypeError, ValueError, pa.ArrowException) as error:
        raise damaged_record(output.state.url, error) from error


def read_record(url: str) -> dict[str, Any]:
    """
    Return what the job that owns the output folder wrote of itself.

    Raises:
        OutputConflictError: No job has written there.
    """
    return _open(url)[1]


def _open(url: str) -> tuple[OutputFolder, dict[str, Any]]:
    output = OutputFolder(url)
    record = output.read_job()
    if record is None and output.folder.names(MARKS):
        raise OutputConflictError(
            f"the job of {url!r} has its state beside the output, in {output.layout.state_url!r}, which is not there. "
            "Move or copy both folders."
        )
    if record is None:
        raise OutputConflictError(f"{url!r} is not the output of a job of this package: it has no job record.")
    check_version(record, url)
    return output, record


def record_of(
    job_id: str, stage: Stage, plan: Plan, output_format: str, config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """
    Return what a job writes of itself.

    Args:
        job_id: Its own.
        stage: What is asked.
        plan: What of.
        output_format: ``parquet`` or ``jsonl``.
        config: The job file's settings; no secrets.
    """
    from nemo_llm_stage import __version__

    return {
        "format_version": FORMAT_VERSION,
        "id": job_id,
        "package_version": __version__,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "stage": stage.describe(),
        "fingerprint": stage.fingerprint,
        "output_format": output_format,
        "config": config,
        **_plan_record(plan),
    }


def _plan_record(plan: Plan) -> dict[str, Any]:
    paths = {file.path: index for index, file in enumerate(plan.files)}
    return {
        "files": [asdict(file) for file in plan.files],
        "schema": base64.b64encode(plan.schema.serialize()).decode(),
        "num_rows": plan.num_rows,
        "is_exact": plan.is_exact,
        "versions": dict(plan.versions),
        "partitions": [
            [paths[part.path], part.start, part.stop, part.num_rows, *([part.deleted] if part.deleted else [])]
            for part in plan.partitions
        ],
    }


def extended_record(record: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Return the record of a job whose plan has grown to `plan`."""
    return {**record, **_plan_record(plan)}


def read_plan(record: Mapping[str, Any]) -> Plan:
    """Return the plan that a record holds."""
    files = [InputFile(**file) for file in record["files"]]
    values = [tuple((name, value) for name, value in file.folder_values) for file in files]
    formats = [file.format for file in files]
    partitions = tuple(
        Partition(
            index,
            files[file].path,
            formats[file],
            start,
            stop,
            num_rows,
            values[file],
            tuple(*deleted),
            files[file],
        )
        for index, (file, start, stop, num_rows, *deleted) in enumerate(record["partitions"])
    )
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(record["schema"])))
    versions = record.get("versions", {})
    return Plan(tuple(files), schema, partitions, record["num_rows"], record["is_exact"], versions=versions)


def check_version(record: Mapping[str, Any], url: str) -> None:
    """
    Refuse a record in a format that this version does not know.

    Raises:
        OutputConflictError: It is in one, or is no record at all.
    """
    if "id" not in record:
        raise OutputConflictError(f"the job record of {url!r} is damaged: it has no id. Choose a new output folder.")
    if record.get("format_version") not in _KNOWN_VERSIONS:
        raise OutputConflictError(
            f"{url!r} was written by version {record.get('package_version')} of this package in a format that this one "
            "does not know; go on with that version, or choose a new output folder."
        )


def as_written(record: Mapping[str, Any], stage: Stage) -> Stage:
    """Return the stage whose columns are those that the output of the job has."""
    return stage.with_skips_as_errors() if skips_are_errors(record) else stage


def under_recorded_paths(record: Mapping[str, Any], files: Sequence[InputFile]) -> Sequence[InputFile]:
    """
    Return `files`, each under the path that the record has for it where that leads to the same file.

    A relative path or a link gives a file another path in another working directory.
    """
    known = {file["path"] for file in record["files"]}
    missing = [path for path in known.difference(file.path for file in files) if Path(path).exists()]
    if not missing:
        return files
    recorded = {Path(path).resolve(): path for path in missing}
    return [
        file if file.path in known else replace(file, path=recorded.get(Path(file.path).resolve(), file.path))
        for file in files
    ]


def input_changes(record: Mapping[str, Any], files: Sequence[InputFile]) -> list[str]:
    """Return a line for each file that is gone, new or changed since the job was planned."""
    return _input_changes([InputFile(**file) for file in record["files"]], files)


def new_files(record: Mapping[str, Any], files: Sequence[InputFile]) -> list[InputFile]:
    """Return the files that the job was not planned over; none if one that it was planned over is gone or changed."""
    known = [InputFile(**file) for file in record["files"]]
    found = {file.path: file for file in files}
    if any(found.get(file.path) != file for file in known):
        return []
    paths = {file.path for file in known}
    return [file for file in files if file.path not in paths]


def check_same_input(record: Mapping[str, Any], files: Sequence[InputFile], url: str) -> None:
    """
    Refuse to go on with a job over other input.

    Raises:
        InputError: A file is gone, new or changed.
    """
    changes = input_changes(record, files)
    if changes:
        raise InputError(
            f"the input is not what the job in {url!r} was planned over:\n  " + "\n  ".join(changes) + "\n"
            "Restore it, write to another output folder, or discard the finished rows with --restart (restart=True in "
            "Python)."
        )


def compare_stage(record: Mapping[str, Any], stage: Stage, folder: OutputFolder, *, restart: bool) -> list[str]:
    """
    Return notices of what differs between the job that wrote `folder` and this one; none where nothing does.

    Raises:
        OutputConflictError: Something differs, rows are finished, and `restart` does not allow to discard them.
    """
    differences = stage_differences(record, stage)
    if record["output_format"] != folder.format:
        differences.append(f"output_format: {record['output_format']} there, {folder.format} now")
    written = OutputFolder(folder.url, record["output_format"])
    if not differences and not restart:
        return []
    account = read_account(written, record["id"])
    account.raise_damage()
    names, counters = account.names, account.counters()
    paid = f"{counters.num_rows:,} finished rows, paid for with {paid_words(counters, record.get('config'))}"
    changed = ("the settings differ from those of the job that wrote " + repr(folder.url), *differences)
    if differences and names and not restart:
        raise OutputConflictError(
            f"{folder.url!r} holds the output of other settings:\n  " + "\n  ".join(differences) + "\n"
            f"There are {paid}.\n"
            f"To keep them, restore these settings, or write to another folder: --output {folder.url}_2\n"
            "To discard them and pay for all rows again: --restart (restart=True in Python). Where raw answers were "
            "kept (keep_raw), requests that are still the same are not paid for again."
        )
    return [
        *(changed if differences else ()),
        f"discarded: {paid}; answers kept or journaled serve requests that are the same.",
    ]


def stage_differences(record: Mapping[str, Any], stage: Stage) -> list[str]:
    """Return a line for each thing in which the stage of the job that wrote `record` differs from `stage`."""
    now = orjson.loads(orjson.dumps(stage.describe(), default=repr))  # a record has been through JSON too
    return _differences(without_request_secrets(record["stage"]), now)  # older versions wrote them down


def _input_changes(before: Sequence[InputFile], now: Sequence[InputFile]) -> list[str]:
    old, new = {file.path: file for file in before}, {file.path: file for file in now}
    return (
        [f"{path} is gone" for path in old if path not in new]
        + [f"{path} is new" for path in new if path not in old]
        + [f"{path} has changed" for path, file in old.items() if path in new and new[path] != file]
    )


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Return a line for each leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for name in sorted({*before, *now})
            for line in _differences(before.get(name), now.get(name), f"{path}.{name}" if path else name)
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [line for place, (old, new) in pairs for line in _differences(old, new, f"{path}[{place}]")]
    if before == now:
        return []
    return [f"{path}: {before!r:.120} there, {now!r:.120} now"]
