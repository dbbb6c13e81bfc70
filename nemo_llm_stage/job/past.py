"""
What a user should know of earlier runs of a job before more is paid for, in words.

Knows the job's record and status; decides nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.state.status import ENDED, read_status
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import LLMStageError
from nemo_llm_stage.job.failure_limit import FailureLimit, causes


def paid_words(counters: Counters, config: Mapping[str, Any] | None) -> str:
    """
    Return what finished rows took: requests, tokens, and dollars where the job has prices.

    Args:
        counters: Of the rows.
        config: The settings of the job that paid; None where they are not known.
    """
    words = (
        f"{counters.num_attempts:,} requests, {counters.input_tokens:,} input and {counters.output_tokens:,} output "
        "tokens"
    )
    prices = [(config or {}).get(name) for name in ("price_input", "price_output")]
    if not any(prices):
        return words
    input_price, output_price = (float(price or 0.0) for price in prices)
    dollars = (counters.input_tokens * input_price + counters.output_tokens * output_price) / 1e6
    return f"{words}, ${dollars:,.2f}" if dollars >= 0.1 else f"{words}, ${dollars:.4f}"


def failed_before(state: Folder, job_id: str, limit: FailureLimit) -> str | None:
    """
    Return a warning if the last run ended with more failed rows than `limit` allows; None otherwise.

    Args:
        state: The job's state folder.
        job_id: Of the job that is to go on.
        limit: Of the run that is about to begin.
    """
    status = None
    with contextlib.suppress(LLMStageError, OSError):  # one that cannot be read is no reason not to run
        status = read_status(state)
    if status is None or status.job_id != job_id or status.phase not in ENDED or not limit.is_over(status.counters):
        return None
    counters = status.counters
    return (
        f"in the last run {counters.num_failed:,} of {counters.num_rows:,} rows failed, more than max_failed_rows = "
        f"{limit.max_failed_rows}:\n{causes(counters)}\nFailed rows that are not in a finished file are sent and paid "
        "for again; with the same cause this run stops again. To go on in spite of it: --max-failed-rows "
        f"{_enough(counters, limit)}."
    )


def _enough(counters: Counters, limit: FailureLimit) -> str:
    """A limit that lets the last run pass, with some room."""
    if isinstance(limit.max_failed_rows, int):
        return str(2 * counters.num_failed)
    return f"{min(1.0, math.ceil(20 * counters.num_failed / counters.num_rows + 1) / 20):g}"
