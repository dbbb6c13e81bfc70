"""
A job: one stage over one input into one output folder, prepared and checked before anything is paid for.

The folder's record says what the job is; running again goes on from it, and refuses to mix another stage or input in.
Knows no Ray.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from nemo_llm_stage.core import Counters
from nemo_llm_stage.dataset.files import InputFile, find_files
from nemo_llm_stage.dataset.output import OutputFolder
from nemo_llm_stage.dataset.plan import Partition, Plan, make_plan
from nemo_llm_stage.errors import ConfigError, InputError, OutputConflictError
from nemo_llm_stage.job.worker import WorkerSpec
from nemo_llm_stage.stage.stage import LLMStage

FORMAT_VERSION = 1
OUTPUT_FORMATS = ("parquet", "jsonl")


@dataclass(frozen=True)
class Job:
    """
    A job ready to run.

    Attributes:
        stage: What is asked.
        plan: What of.
        output: Where to.
        committed: Names of the partitions' files that are there already.
    """

    stage: LLMStage
    plan: Plan
    output: OutputFolder
    committed: frozenset[str]

    @property
    def pending(self) -> list[Partition]:
        """The partitions still to be run."""
        return [partition for partition in self.plan.partitions if self.output.name_of(partition) not in self.committed]

    @property
    def spec(self) -> WorkerSpec:
        """What a worker of this job is made from."""
        rows = max(1, self.plan.num_rows // len(self.plan.partitions))
        return WorkerSpec(self.stage, self.output.url, self.output.format, self.plan.schema, rows)

    def counters(self) -> Counters:
        """Return what the partitions committed before this run hold, from their files' own counts."""
        total = Counters()
        for name in sorted(self.committed):
            total.add(self.output.read_counters(name))
        return total


def prepare_job(
    stage: LLMStage,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    output_format: str = "parquet",
    rows_per_partition: int | None = None,
    scan_input: str = "auto",
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
    if record is not None:
        _check_same(record, stage, files, output_format, folder.url)
        plan = _read_plan(record, files)
    else:
        folder.check_writable()
        plan = make_plan(files, rows_per_partition=rows_per_partition, scan_input=scan_input)
    stage.check_columns(plan.schema.names)
    committed = frozenset(folder.committed())
    job = Job(stage, plan, folder, committed)
    if job.pending:
        stage.check_server()
    if record is None and not folder.write_job(_record_of(job)):
        raise OutputConflictError(f"another job has just begun to write {folder.url!r}; choose another output folder.")
    return job


def open_output(url: str) -> tuple[OutputFolder, Plan]:
    """
    Return the output folder of a job that has begun, and the job's plan.

    Raises:
        OutputConflictError: No job has written there.
    """
    record = OutputFolder(url).read_job()
    if record is None:
        raise OutputConflictError(f"{url!r} is not the output of a job of this package: it has no job record.")
    files = [InputFile(**file) for file in record["files"]]
    return OutputFolder(url, record["output_format"]), _read_plan(record, files)


def _record_of(job: Job) -> dict[str, Any]:
    from nemo_llm_stage import __version__

    paths = {file.path: index for index, file in enumerate(job.plan.files)}
    return {
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "stage": job.stage.describe(),
        "fingerprint": job.stage.fingerprint,
        "output_format": job.output.format,
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


def _check_same(
    record: Mapping[str, Any], stage: LLMStage, files: Sequence[InputFile], output_format: str, url: str
) -> None:
    if record["format_version"] != FORMAT_VERSION:
        raise OutputConflictError(
            f"{url!r} was written by version {record['package_version']} of this package in a format that this one "
            "does not know; go on with that version, or choose a new output folder."
        )
    if record["output_format"] != output_format:
        raise OutputConflictError(f"{url!r} holds {record['output_format']} files of this job, not {output_format}.")
    changes = _input_changes([InputFile(**file) for file in record["files"]], files)
    if changes:
        raise InputError(
            f"the input is not what the job in {url!r} was planned over:\n  " + "\n  ".join(changes) + "\n"
            "Restore it, or choose a new output folder."
        )
    if record["fingerprint"] != stage.fingerprint:
        differences = _differences(record["stage"], stage.describe())
        raise OutputConflictError(
            f"{url!r} holds the output of another stage:\n  " + "\n  ".join(differences) + "\n"
            "Restore these settings to go on with it, or choose a new output folder."
        )


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
