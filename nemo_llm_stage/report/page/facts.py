"""What the page says of a job in a few words and numbers. Knows counts and the job's state; knows nothing of HTML."""

from __future__ import annotations

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.state.timeline import Timeline
from nemo_llm_stage.dataset.verify import Verification
from nemo_llm_stage.job.state import read_state
from nemo_llm_stage.report.units import duration, money


def verdict(verification: Verification, num_planned: int) -> tuple[str, str]:
    """Return a class of the style sheet and a sentence."""
    counters = verification.counters
    if verification.problems:
        return "bad", f"{len(verification.problems)} problems: {verification.problems[0]}"
    if verification.num_missing:
        return "open", (
            f"{counters.num_rows:,} of {num_planned:,} rows are finished; {verification.num_missing:,} of "
            f"{verification.num_partitions:,} partitions are open. Run the job again to continue."
        )
    if counters.num_rows and counters.num_failed * 20 > counters.num_rows:
        return "bad", f"Every row is accounted for, but {counters.num_failed / counters.num_rows:.1%} failed."
    return "good", "Every row is accounted for."


def failures(counters: Counters) -> list[tuple[str, int, str]]:
    """Return each kind of failure, its rows and an example of its words; most first."""
    kinds = sorted(counters.errors.items(), key=lambda item: -item[1])
    return [(kind, num, counters.examples.get(kind, "").partition(": ")[2]) for kind, num in kinds]


def waste(counters: Counters) -> list[tuple[str, int, int]]:
    """Return what was spent: its name, how much, and how much of that was wasted."""
    return [
        ("requests", counters.num_attempts, counters.num_wasted_attempts),
        ("output tokens", counters.output_tokens, counters.wasted_output_tokens),
    ]


def causes(counters: Counters) -> list[tuple[str, int, str]]:
    """Return why sends gave no answer that is kept: in words, how many, and what they cost; none for no sends."""
    failed, second = counters.num_failed_answers, counters.num_second_sends
    unusable = max(0, counters.num_wasted_attempts - failed - second)
    found = [
        ("the send failed: sent again, or the row failed", failed, "wasted"),
        ("the answer could not be used: asked again, or the row failed", unusable, "wasted"),
        ("a slow server: sent a second time elsewhere", second, "wasted"),
        ("the rate limit (429): sent again", counters.num_rate_limited, "not paid for"),
        ("the connection was refused", counters.num_refused_connections, "no server was reached"),
    ]
    return [cause for cause in found if cause[1]]


def spent(url: str, timeline: Timeline | None) -> list[tuple[str, str]]:
    """Return what the job cost, and how long its newest run took, as far as the folder tells."""
    status = read_state(url).status
    spending = {} if status is None else status.spending
    spent = [("cost", money(spending["cost"]))] if "cost" in spending else []
    if "gpu_hours" in spending:
        spent.append(("GPU-hours", f"{spending['gpu_hours']:,.3g}"))
    if "gpu_cost" in spending:
        spent.append(("GPU cost", money(spending["gpu_cost"])))
    if status is not None and status.elapsed_s:
        return [*spent, ("time, all runs", duration(status.elapsed_s))]
    return spent if timeline is None else [*spent, ("newest run", duration(timeline.points[-1][0]))]
