"""
What makes a worker, in any process.

Knows settings; knows nothing of what a worker does with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from nemo_llm_stage.dataset.journal import FLUSH_INTERVAL_S
from nemo_llm_stage.job.prepare import Job
from nemo_llm_stage.stage.base import Stage


@dataclass(frozen=True)
class WorkerSpec:
    """
    What makes a worker, in any process.

    Attributes:
        stage: Not yet opened.
        output_url: The output folder.
        output_format: ``parquet`` or ``jsonl``.
        input_schema: Of every partition.
        rows_per_partition: The usual number, for sizing.
        keep_raw: Whether the raw answers are kept after the commit.
        job_id: Of the job; kept with each file.
        skips_bad_input: Whether input that cannot be read is left out and recorded; else it stops the run.
        flush_interval_s: See `Journal`.
        retry_kinds: None for a partition that is not committed yet. Else the partition is, and its rows that failed
            with one of these kinds, or with any where there are none, are asked again.
    """

    stage: Stage
    output_url: str
    output_format: str
    input_schema: pa.Schema
    rows_per_partition: int
    keep_raw: bool = False
    job_id: str = ""
    skips_bad_input: bool = False
    flush_interval_s: float = FLUSH_INTERVAL_S
    retry_kinds: frozenset[str] | None = None

    @property
    def num_permits(self) -> int:
        """Requests that a worker keeps in flight."""
        return self.stage.max_concurrent_requests


def spec_of(job: Job) -> WorkerSpec:
    """Return what the workers of `job` are made from."""
    return WorkerSpec(
        stage=job.stage,
        output_url=job.output.url,
        output_format=job.output.format,
        input_schema=job.plan.schema,
        rows_per_partition=max(1, job.plan.num_rows // len(job.plan.partitions)),
        keep_raw=job.keep_raw,
        job_id=job.id,
        skips_bad_input=job.skips_bad_input,
        flush_interval_s=job.flush_interval_s,
    )
