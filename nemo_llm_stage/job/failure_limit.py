"""
When a job that is going wrong is stopped.

Knows counts; knows nothing of rows or servers.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_llm_stage.core import Counters
from nemo_llm_stage.errors import ConfigError, RunError

MIN_ROWS = 200
"""Rows that must have finished before a fraction of failures says anything."""


@dataclass(frozen=True)
class FailureLimit:
    """
    The failed rows that a run may have.

    Args:
        max_failed_rows: A number of rows (an int), or a fraction of the finished ones (a float up to 1) that is looked
            at once 200 rows are finished; None for no limit.

    Raises:
        ConfigError: A negative number, or a fraction above 1.
    """

    max_failed_rows: int | float | None = 0.05

    def __post_init__(self) -> None:
        limit = self.max_failed_rows
        if limit is not None and (limit < 0 or (isinstance(limit, float) and limit > 1)):
            raise ConfigError(
                f"max_failed_rows is {limit}; it must be a number of rows (an int), a fraction (0.0 to 1.0), or null."
            )

    def check(self, counters: Counters) -> None:
        """
        Compare with what a run has done so far.

        Raises:
            RunError: Too many rows failed; the message groups them by cause, with one example each.
        """
        limit = self.max_failed_rows
        if limit is None:
            return
        if isinstance(limit, float):
            is_over = counters.num_rows >= MIN_ROWS and counters.num_failed > limit * counters.num_rows
        else:
            is_over = counters.num_failed > limit
        if is_over:
            raise RunError(
                f"stopped: {counters.num_failed:,} of {counters.num_rows:,} rows failed, more than max_failed_rows = "
                f"{limit}:\n{causes(counters)}\nWhat is committed or journaled stays. Mend the cause, or raise "
                "max_failed_rows, and run the same job again: it goes on from here."
            )


def causes(counters: Counters) -> str:
    """Return a line for each kind of failure, most frequent first, with one example."""
    kinds = sorted(counters.errors.items(), key=lambda item: -item[1])
    return "\n".join(f"  {num:,} x {counters.examples.get(kind, kind)}" for kind, num in kinds)
