"""
``summary.json`` in the state folder of a finished job: its outcome, for programs.

Written when every row is accounted for, and anew by each later run or retry. Version 1; keys are only added:

```
version          1
output           path or URL of the output folder
job_id           as in job.json
finished_at      UTC, ISO 8601
package_version  of nemo_llm_stage
elapsed_s        seconds of the run that finished it
num_files        committed files
rows             total, answered, failed, skipped, dropped, cut_off, left_out: of the whole job
requests         sent, wasted: of the whole job
tokens           input, output, cached, wasted_output: of the whole job
cost             dollars of the whole job; null without prices
gpu_hours        of the whole job, its runs together; null where the number of GPUs is not given
gpu_cost         dollars for them; null without a price
this_run         rows, requests, wasted_requests, input_tokens, output_tokens and cost of the run that finished it
failures         kind → rows
columns          the generated columns
models           that were asked
```
"""

from __future__ import annotations

from typing import Any

from nemo_llm_stage import __version__
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.state.json_file import now, write_json
from nemo_llm_stage.job.prepare import Job
from nemo_llm_stage.job.result import JobResult

SUMMARY = "summary.json"
VERSION = 1


def write_summary(job: Job, result: JobResult) -> None:
    """
    Replace the file.

    Raises:
        OSError: It cannot be written.
    """
    write_json(job.output.state, SUMMARY, summary_values(job, result))


def summary_values(job: Job, result: JobResult) -> dict[str, Any]:
    """Return what the file says."""
    whole, run = result.counters, result.this_run
    return {
        "version": VERSION,
        "output": result.output,
        "job_id": job.id,
        "finished_at": now(),
        "package_version": __version__,
        "elapsed_s": round(result.elapsed_s, 3),
        "num_files": result.num_partitions,
        "rows": {
            "total": whole.num_rows,
            **{
                name: getattr(whole, f"num_{name}")
                for name in ("answered", "failed", "skipped", "dropped", "cut_off", "left_out")
            },
        },
        "requests": {"sent": whole.num_attempts, "wasted": whole.num_wasted_attempts},
        "tokens": {
            "input": whole.input_tokens,
            "output": whole.output_tokens,
            "cached": whole.cached_tokens,
            "wasted_output": whole.wasted_output_tokens,
        },
        "cost": _cost(result, whole),
        "gpu_hours": None if result.gpu_time is None else round(result.gpu_time.hours, 6),
        "gpu_cost": None if result.gpu_time is None or result.gpu_time.cost is None else round(result.gpu_time.cost, 6),
        "this_run": {
            "rows": run.num_rows,
            "requests": run.num_attempts,
            "wasted_requests": run.num_wasted_attempts,
            "input_tokens": run.input_tokens,
            "output_tokens": run.output_tokens,
            "cost": _cost(result, run),
        },
        "failures": dict(sorted(whole.errors.items(), key=lambda item: -item[1])),
        "columns": list(result.output_columns),
        "models": list(dict.fromkeys(column.model for column in job.stage.columns)),
    }


def _cost(result: JobResult, counters: Counters) -> float | None:
    if result.price_input is None and result.price_output is None:
        return None
    tokens = counters.input_tokens * (result.price_input or 0.0) + counters.output_tokens * (result.price_output or 0.0)
    return round(tokens / 1e6, 6)
