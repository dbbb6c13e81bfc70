"""What rows add to the counts of a job."""

from __future__ import annotations

from typing import Any

import orjson

from nemo_llm_stage.core import Completion, Origin, RowResult, Usage
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.summary import Summary


def result(finish_reason: str = "stop", **fields: Any) -> RowResult:
    completion = Completion(texts=("x",), finish_reasons=(finish_reason,), usage=Usage(10, 5))
    return RowResult(**{"value": "x", "completion": completion, "attempts": 2} | fields)


def count(*results: RowResult, **fields: Any) -> Counters:
    counters = Counters()
    counters.count({f"column {number}": item for number, item in enumerate(results)}, **fields)
    return counters


def test_an_answered_row_that_ended_at_max_tokens_is_cut_off() -> None:
    """In the words of any server, and once for a row of several columns."""
    assert count(result()).num_cut_off == 0
    assert count(result("length"), result("MAX_TOKENS")).num_cut_off == 1
    assert count(result("length", error="truncated: at 5 tokens", value=None)).num_cut_off == 0


def test_what_an_earlier_run_paid_is_told_apart() -> None:
    """A journaled answer costs this run nothing."""
    counters = count(result(origin=Origin.JOURNAL))
    assert (counters.num_attempts, counters.resumed_attempts, counters.resumed_wasted_attempts) == (2, 2, 1)
    assert (counters.input_tokens, counters.resumed_input_tokens, counters.resumed_output_tokens) == (10, 10, 5)
    assert (count(result()).num_attempts, count(result()).resumed_attempts) == (2, 0)


def test_a_row_is_resumed_if_nothing_is_sent_for_it() -> None:
    """A row of two columns with one journaled answer still needs the server."""
    journaled = result(origin=Origin.JOURNAL)
    assert count(journaled).num_resumed_rows == 1
    assert count(journaled, result(origin=Origin.SHARED)).num_resumed_rows == 1
    assert count(journaled, result()).num_resumed_rows == 0
    assert count(result(origin=Origin.SHARED)).num_resumed_rows == 0


def test_the_example_of_a_failure_is_the_newest() -> None:
    """A failure of an hour ago says less."""
    counters = Counters()
    for words in ("timeout: 1 s", "timeout: 2 s"):
        counters.count({"x": RowResult(error=words)})
    assert counters.examples == {"timeout": "timeout: 2 s"}


def test_counts_of_an_older_version_are_read() -> None:
    """They lack what has been added since."""
    summary = Summary.decode(orjson.dumps({"job": "a", "counters": {"num_rows": 3, "num_failed": 1}}))
    assert (summary.counters.num_answered, summary.counters.num_cut_off) == (2, 0)


def test_what_a_dropped_row_had_is_a_cost_and_no_row() -> None:
    """Another worker has answered it."""
    counters = count(result())
    counters.waste({"a": result(), "b": result(origin=Origin.SHARED)})
    assert (counters.num_rows, counters.num_attempts, counters.num_wasted_attempts) == (1, 4, 3)
    assert (counters.output_tokens, counters.wasted_output_tokens) == (10, 5)
