"""
How many rows may fail before a job is stopped, or ends as failed.

Knows counts; knows nothing of rows or servers.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.errors import ConfigError, TooManyFailedRowsError

MIN_ROWS = 200
"""During a run a fraction of failures is looked at from so many finished rows on; at the end, for any number."""


@dataclass(frozen=True)
class FailureLimit:
    """
    The failed rows that a run may have.

    Args:
        max_failed_rows: A number of rows (an int), or a fraction of the finished ones (a float up to 1); None for no
            limit. A fraction stops a run once 200 rows are finished, and is judged at the end whatever their number:
            of 10 rows, 0.05 allows none to fail.

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
            TooManyFailedRowsError: More rows failed; the message groups them by cause, with one example each.
        """
        is_early = isinstance(self.max_failed_rows, float) and counters.num_rows < MIN_ROWS
        if self.is_over(counters) and not is_early:
            raise TooManyFailedRowsError(
                f"stopped: {self._account(counters)}\nCommitted files and journaled answers stay. Fix the cause, or "
                "raise max_failed_rows, and run the same job again to resume it."
            )

    def check_end(self, counters: Counters) -> None:
        """
        Compare with the whole output of a job.

        Raises:
            TooManyFailedRowsError: More rows failed; the message groups them by cause, with one example each.
        """
        if self.is_over(counters):
            raise TooManyFailedRowsError(
                f"the job has ended, but {self._account(counters)}\nThe output stays, without _SUCCESS. Fix the cause "
                "and run retry-failed, or raise max_failed_rows and run the same job again to accept it."
            )

    def is_over(self, counters: Counters) -> bool:
        """Whether more rows failed than are allowed."""
        limit = self.max_failed_rows
        if limit is None:
            return False
        return counters.num_failed > (limit * counters.num_rows if isinstance(limit, float) else limit)

    def _account(self, counters: Counters) -> str:
        return (
            f"{counters.num_failed:,} of {counters.num_rows:,} rows failed, more than max_failed_rows = "
            f"{self.max_failed_rows}:\n{causes(counters)}\n  cause and next step: nemo-llm-stage explain "
            f"{max(counters.errors, key=counters.errors.__getitem__, default='error')}"
        )


def causes(counters: Counters) -> str:
    """Return a line for each kind of failure, most frequent first, with one example."""
    kinds = sorted(counters.errors.items(), key=lambda item: -item[1])
    return "\n".join(f"  {num:,} x {counters.examples.get(kind, kind)}" for kind, num in kinds)
