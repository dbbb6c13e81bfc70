"""
What makes a worker, in any process.

Knows settings; knows nothing of what a worker does with them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa

from nemo_llm_stage.client.endpoints.share import ALONE, WorkerPlace
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.dataset.layout import Layout
from nemo_llm_stage.job.prepare import Job
from nemo_llm_stage.stage.stage import Stage


@dataclass(frozen=True)
class WorkerSpec:
    """
    What makes a worker, in any process.

    Attributes:
        stage: Not yet opened.
        output_url: The output folder.
        layout: Where the job's state is.
        input_schema: Columns of every partition.
        rows_per_partition: Rows of a usual partition, for sizing.
        job_id: Written into each file.
        settings: How the job runs.
        retry_kinds: None runs partitions that have no committed file. Otherwise the partitions are committed, and
            their rows that failed with one of these kinds are retried; an empty set retries all failed rows.
        place: Which of several workers it is.
    """

    stage: Stage
    output_url: str
    layout: Layout
    input_schema: pa.Schema
    rows_per_partition: int
    job_id: str
    settings: JobSettings
    retry_kinds: frozenset[str] | None = None
    place: WorkerPlace = ALONE

    def at(self, index: int, num_workers: int) -> WorkerSpec:
        """Return what makes one of several workers; `index` counts from 0."""
        return replace(self, place=WorkerPlace(index, num_workers))

    @property
    def max_concurrent_requests(self) -> int:
        """Requests that the worker keeps in flight."""
        return self.stage.total_limit(self.place)


def spec_of(job: Job) -> WorkerSpec:
    """Return what the workers of `job` are made from."""
    return WorkerSpec(
        stage=job.stage,
        output_url=job.output.url,
        layout=job.output.layout,
        input_schema=job.plan.schema,
        rows_per_partition=max(1, job.plan.num_rows // len(job.plan.partitions)),
        job_id=job.id,
        settings=job.settings,
    )
