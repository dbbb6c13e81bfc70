"""The outcome of a job, for Python callers."""

from __future__ import annotations

from dataclasses import dataclass, field

from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.bad_input import BadInput
from nemo_llm_stage.stage.status import OrderStatistics


@dataclass(frozen=True, slots=True)
class GpuTime:
    """
    What the servers' GPUs were there for.

    Attributes:
        hours: Of all GPUs together.
        cost: Dollars; None without a price.
    """

    hours: float
    cost: float | None = None

    @classmethod
    def of(cls, seconds: float, gpus: float | None, price_per_hour: float | None) -> GpuTime | None:
        """Return the time of so many GPUs; None where their number is not known."""
        if gpus is None:
            return None
        hours = seconds / 3600 * gpus
        return cls(hours, None if price_per_hour is None else hours * price_per_hour)


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
        columns: The input columns that the prompts use.
        output_columns: The generated columns, without the ones beside them.
        bad_files: Files of the input that were left out as a whole because they are damaged (on_bad_input: skip); the
            rows of others that were left out are `counters.num_left_out`.
        num_retried: Failed rows that `retry_failed` sent again; None after `run_job`.
        left_out: The first few of what was left out, with file, line and reason; all of it is written down in the
            job's state folder, under ``bad_input/``.
        endpoints: What each server did in this run.
        order: What the order in which rows were sent has saved.
        price_note: Where the prices come from; empty where they were given.
        gpu_time: Of all runs of the job; None where the number of GPUs was not given.
        is_state_inside: Whether the job's state is in the output folder, among the files; else it is beside it.
        cell: The number of the notebook's cell that shows the summary already; None elsewhere.
    """

    output: str
    counters: Counters = field(default_factory=Counters)
    num_partitions: int = 0
    num_rows_before: int = 0
    elapsed_s: float = 0.0
    columns: tuple[str, ...] = ()
    output_columns: tuple[str, ...] = ()
    bad_files: tuple[str, ...] = ()
    num_retried: int | None = None
    left_out: tuple[BadInput, ...] = ()
    output_format: str = "parquet"
    this_run: Counters = field(default_factory=Counters)
    price_input: float | None = None
    price_output: float | None = None
    endpoints: tuple[EndpointStatus, ...] = ()
    order: OrderStatistics = field(default_factory=OrderStatistics)
    price_note: str = ""
    gpu_time: GpuTime | None = None
    is_state_inside: bool = False
    cell: int | None = field(default=None, compare=False)

    def _ipython_display_(self) -> None:
        """Show the summary as the result of a notebook's cell, unless the cell shows it already."""
        from nemo_llm_stage.report.progress.displays import number_of_cell, show_result
        from nemo_llm_stage.report.summary import summary

        if self.cell is None or self.cell != number_of_cell():
            show_result(summary(self))

    def _repr_html_(self) -> str:
        """Return the summary, which a notebook shows for a cell that ends with this result."""
        from nemo_llm_stage.report.progress.displays import as_html
        from nemo_llm_stage.report.summary import summary

        return as_html(summary(self))
