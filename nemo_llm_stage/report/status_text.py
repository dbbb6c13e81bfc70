"""
How a job stands, in a few lines of text for people.

Pure: knows a job's state; reads nothing.
"""

from __future__ import annotations

from nemo_llm_stage.dataset.state.status import JobStatus
from nemo_llm_stage.job.state import KILLED, JobState
from nemo_llm_stage.report.limits import held_back_now
from nemo_llm_stage.report.units import duration, money
from nemo_llm_stage.text import one_line


def status_lines(job: JobState) -> list[str]:
    """Return the lines that ``nemo-llm-stage status`` shows."""
    lines = [f"{job.url}: {_headline(job)}"]
    if job.status is None:
        lines.append(f"  files      {job.num_committed:,} of {job.num_partitions:,}")
    else:
        lines += _counts(job, job.status)
    if not job.is_live and job.state != "finished":
        lines.append(f"  resume     {job.command}")
    return lines


def job_line(job: JobState) -> list[str]:
    """Return the cells of one job in a list of jobs: folder, state, rows, speed, last seen."""
    status = job.status
    num_done = 0 if status is None else status.counters.num_rows
    rows = f"{num_done:,} of {job.num_rows:,}" if status is not None else f"{job.num_rows:,}"
    speed = f"{status.rows_per_s:,.1f} rows/s" if status is not None and job.is_live else ""
    seen = "" if job.seen_s is None else f"{duration(job.seen_s)} ago"
    return [job.url, job.state, rows, speed, seen]


def _headline(job: JobState) -> str:
    process = "" if job.status is None else f"process {job.status.process.pid} on {job.status.process.host}"
    seen = "" if job.seen_s is None else f", last seen {duration(job.seen_s)} ago"
    reason = None if job.status is None else job.status.reason
    if job.is_live:
        since = "" if job.holder is None else f", since {job.holder.started_at}"
        because = f" ({one_line(reason, 200)})" if reason else ""
        return f"{job.state}{because}; {process}{since}{seen}"
    if job.state == KILLED:
        return f"stopped at {job.seen_at} without a word: the driver was killed ({process})"
    if job.state == "finished" or job.status is None:
        return job.state
    return f"{job.state} at {job.status.updated_at}" + (f": {one_line(reason, 300)}" if reason else "")


def _counts(job: JobState, status: JobStatus) -> list[str]:
    counters = status.counters
    about = "" if status.is_exact else "about "
    percent = f" ({100 * counters.num_rows / status.num_rows:.0f} %)" if status.num_rows else ""
    rows = f"  rows       {counters.num_rows:,} of {about}{status.num_rows:,}{percent}"
    if job.is_live:
        rows += f", {status.rows_per_s:,.1f} rows/s"
        rows += f", about {duration(status.eta_s)} left" if status.eta_s is not None else ""
    parts = ("answered", "failed", "skipped", "dropped")
    lines = [
        rows,
        "  of these   " + ", ".join(f"{getattr(counters, f'num_{part}'):,} {part}" for part in parts),
        f"  files      {job.num_committed:,} of {job.num_partitions:,}",
    ]
    if job.is_live:
        lines.append(f"  in flight  {status.num_in_flight:,} of {status.max_concurrent_requests:,}")
        lines += _held_back(status)
    lines.append(f"  spent      {_spent(status)}")
    if status.limits:
        lines.append("  limits     " + ", ".join(f"{name} {value:g}" for name, value in status.limits.items()))
    if status.trouble and job.is_live:
        lines.append(f"  trouble    {one_line(status.trouble, 200)}")
    lines += [
        f"  failed     {failure['num']:,} x {failure['kind']}: {one_line(str(failure['example']), 160)}"
        for failure in status.failures[:5]
    ]
    lines += [
        f"  {event['at'][11:19]}   {event['kind']}: {one_line(event['text'], 160)}" for event in status.events[-5:]
    ]
    return lines


def _held_back(status: JobStatus) -> list[str]:
    words = [held_back_now(server.get("bottleneck"), server.get("reason")) for server in status.endpoints]
    return [f"  held back  by {one_line(text, 160)}" for text in dict.fromkeys(filter(None, words))][:3]


def _spent(status: JobStatus) -> str:
    spent = status.spending
    text = (
        f"{spent.get('num_requests', 0):,} requests, {spent.get('input_tokens', 0):,} input and "
        f"{spent.get('output_tokens', 0):,} output tokens"
    )
    text += f", ${spent['cost']:,.4g}" if "cost" in spent else ""
    text += f", {spent['gpu_hours']:,.3g} GPU-hours" if "gpu_hours" in spent else ""
    return text + (f" for {money(spent['gpu_cost'])}" if "gpu_cost" in spent else "")
