"""
A job: one stage over one input into one output folder, prepared and checked before anything is paid for.

The folder's record says what the job is; running again goes on from it, and refuses to mix another stage or input in.
Knows no Ray.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from nemo_llm_stage.core import Counters, sum_counters
from nemo_llm_stage.dataset.files import InputFile, find_files
from nemo_llm_stage.dataset.output import OutputFolder
from nemo_llm_stage.dataset.plan import Partition, Plan, make_plan
from nemo_llm_stage.errors import ConfigError, InputError, OutputConflictError
from nemo_llm_stage.job.worker import WorkerSpec
from nemo_llm_stage.stage.stage import LLMStage

FORMAT_VERSION = 1
OUTPUT_FORMATS = ("parquet", "jsonl")
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
        notices: What a person should know before it starts.
    """

    stage: LLMStage
    plan: Plan
    output: OutputFolder
    committed: frozenset[str]
    id: str
    keep_raw: bool = False
    notices: tuple[str, ...] = ()

    @property
    def pending(self) -> list[Partition]:
        """The partitions still to be run."""
        return [partition for partition in self.plan.partitions if self.output.name_of(partition) not in self.committed]

    @property
    def spec(self) -> WorkerSpec:
        """What a worker of this job is made from."""
        rows = max(1, self.plan.num_rows // len(self.plan.partitions))
        return WorkerSpec(
            self.stage, self.output.url, self.output.format, self.plan.schema, rows, self.keep_raw, self.id
        )

    def counters(self) -> Counters:
        """Return what the partitions committed before this run hold, from their files' own counts."""
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            return sum_counters(pool.map(self.output.read_counters, sorted(self.committed)))


def prepare_job(
    stage: LLMStage,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    output_format: str = "parquet",
    rows_per_partition: int | None = None,
    scan_input: str = "auto",
    restart: bool = False,
    keep_raw: bool = False,
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
        config: The job file's settings, to be found again by `retry-failed`; without secrets.

    Raises:
        InputError: The input cannot be read, or lacks a column.
        OutputConflictError: The folder cannot be written, or holds another job's output.
        ConfigError: A setting cannot work.
        FatalError: The server does not take the key or the model.
        TransientError: The server cannot be reached.
    """
    if output_format not in OUTPUT_FORMATS:
        raise ConfigError(f"output_format is {output_format!r}; it must be one of {', '.join(OUTPUT_FORMATS)}.")
    if rows_per_partition is not None and rows_per_partition < 1:
        raise ConfigError(f"rows_per_partition is {rows_per_partition}; it must be at least 1.")
    folder = OutputFolder(str(output), output_format)
    record = folder.read_job()
    files = find_files(inputs)
    notices: list[str] = []
    if record is not None:
        _check_same_input(record, files, folder.url)
        plan = _read_plan(record, files)
        notices = _compare_stage(record, stage, folder, restart=restart)
    folder.check_writable()
    if record is None:
        plan = make_plan(files, rows_per_partition=rows_per_partition, scan_input=scan_input)
    stage.check_columns(plan.schema.names)
    is_new = record is None or restart or bool(notices)
    committed = frozenset() if is_new else frozenset(folder.committed())
    job_id = uuid.uuid4().hex if record is None or is_new else record["id"]
    job = Job(stage, plan, folder, committed, job_id, keep_raw, tuple(notices))
    if job.pending:
        stage.check_server()
    if record is None and not folder.write_job(_record_of(job, config)):
        raise OutputConflictError(f"another job has just begun to write {folder.url!r}; choose another output folder.")
    if record is not None and is_new:
        folder.replace_job(_record_of(job, config))
    return job


def prepare_retry(stage: LLMStage, output: str | Path, kinds: Collection[str]) -> tuple[Job, list[Partition]]:
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
    differences = _differences(record["stage"], stage.describe())
    if differences:
        raise OutputConflictError(
            f"{folder.url!r} holds the output of another stage:\n  " + "\n  ".join(differences) + "\n"
            "Only the same stage can ask its failed rows again."
        )
    committed = frozenset(folder.committed())
    job = Job(stage, plan, folder, committed, record["id"], keep_raw=bool(folder.raw_folder().folders()))
    wanted = [
        partition
        for partition in plan.partitions
        if folder.name_of(partition) in committed and _has_failed(folder, folder.name_of(partition), kinds)
    ]
    if wanted:
        stage.check_server()
    return job, wanted


def open_output(url: str) -> tuple[OutputFolder, Plan]:
    """
    Return the output folder of a job that has begun, and the job's plan.

    Raises:
        OutputConflictError: No job has written there.
    """
    record = read_record(url)
    files = [InputFile(**file) for file in record["files"]]
    return OutputFolder(url, record["output_format"]), _read_plan(record, files)


def read_record(url: str) -> dict[str, Any]:
    """
    Return what the job that owns the output folder wrote of itself.

    Raises:
        OutputConflictError: No job has written there.
    """
    record = OutputFolder(url).read_job()
    if record is None:
        raise OutputConflictError(f"{url!r} is not the output of a job of this package: it has no job record.")
    return record


def _has_failed(folder: OutputFolder, name: str, kinds: Collection[str]) -> bool:
    errors = folder.read_counters(name).errors
    return any(kind in errors for kind in kinds) if kinds else bool(errors)


def _record_of(job: Job, config: Mapping[str, Any] | None) -> dict[str, Any]:
    from nemo_llm_stage import __version__

    paths = {file.path: index for index, file in enumerate(job.plan.files)}
    return {
        "format_version": FORMAT_VERSION,
        "id": job.id,
        "package_version": __version__,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "stage": job.stage.describe(),
        "fingerprint": job.stage.fingerprint,
        "output_format": job.output.format,
        "config": config,
        "files": [asdict(file) for file in job.plan.files],
        "schema": base64.b64encode(job.plan.schema.serialize()).decode(),
        "num_rows": job.plan.num_rows,
        "is_exact": job.plan.is_exact,
        "partitions": [[paths[part.path], part.start, part.stop, part.num_rows] for part in job.plan.partitions],
    }


def _read_plan(record: Mapping[str, Any], files: Sequence[InputFile]) -> Plan:
    partitions = tuple(
        Partition(index, files[file].path, files[file].format, start, stop, num_rows)
        for index, (file, start, stop, num_rows) in enumerate(record["partitions"])
    )
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(record["schema"])))
    return Plan(tuple(files), schema, partitions, record["num_rows"], record["is_exact"])


def _check_same_input(record: Mapping[str, Any], files: Sequence[InputFile], url: str) -> None:
    if record["format_version"] != FORMAT_VERSION:
        raise OutputConflictError(
            f"{url!r} was written by version {record['package_version']} of this package in a format that this one "
            "does not know; go on with that version, or choose a new output folder."
        )
    changes = _input_changes([InputFile(**file) for file in record["files"]], files)
    if changes:
        raise InputError(
            f"the input is not what the job in {url!r} was planned over:\n  " + "\n  ".join(changes) + "\n"
            "Restore it, or choose a new output folder."
        )


def _compare_stage(record: Mapping[str, Any], stage: LLMStage, folder: OutputFolder, *, restart: bool) -> list[str]:
    """
    Return notices of what differs between the job that wrote `folder` and this one; none where nothing does.

    Raises:
        OutputConflictError: Something differs, rows are finished, and `restart` does not allow to throw them away.
    """
    differences = _differences(record["stage"], stage.describe())
    if record["output_format"] != folder.format:
        differences.append(f"output_format: {record['output_format']} there, {folder.format} now")
    written = OutputFolder(folder.url, record["output_format"])
    names = written.committed()
    if not differences and not restart:
        return []
    num_rows = sum(written.read_counters(name).num_rows for name in names)
    changed = ("the settings differ from those of the job that wrote " + repr(folder.url), *differences)
    if differences and names and not restart:
        raise OutputConflictError(
            f"{folder.url!r} holds the output of other settings:\n  " + "\n  ".join(differences) + "\n"
            f"{num_rows:,} rows are finished there. Restore these settings to go on with it, choose a new output "
            "folder, or throw the finished rows away with --restart: requests that are still the same are then not "
            "paid for again where their raw answers were kept (keep_raw)."
        )
    return [
        *(changed if differences else ()),
        f"{num_rows:,} finished rows are thrown away; answers kept or journaled serve requests that are the same.",
    ]


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
    # A record has been through JSON: tuples are lists there.
    if before == now or repr(before) == repr(list(now) if isinstance(now, tuple) else now):
        return []
    return [f"{path}: {before!r:.120} there, {now!r:.120} now"]
