"""Several answers a row: as many as were wanted, and a reason beside each one that is missing."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_llm_stage import Completion, Counters, LLMStage, RowError
from nemo_llm_stage.testing import ScriptedClient

FILTERED = "content_filter: The server filtered the answer."


def number(text: str) -> int:
    return int(text)


def run(script: Any, num: int = 2, **more: Any) -> tuple[list[dict[str, Any]], Counters, ScriptedClient]:
    client = script if isinstance(script, ScriptedClient) else ScriptedClient(script, max_retries=0)
    generation = {"n": num, **more.pop("generation", {})}
    stage = LLMStage(
        **{"client": client, "model": "m", "prompt": "{{ text }}", "output_column": "x", "max_reasks": 0}
        | {"generation_config": generation}
        | more
    )
    try:
        table = pa.table({"text": ["?"]})
        outcomes = stage.submit(stage.rows_of(table)).result()
        counters = Counters()
        for outcome in outcomes:
            counters.count(outcome)
        return stage.add_columns(table, outcomes).drop_columns("text").to_pylist(), counters, client
    finally:
        stage.close()


def test_answers_that_a_server_leaves_out_are_fetched_one_by_one() -> None:
    """With seeds of their own, or they would be the same; the account holds all requests."""
    [row], counters, client = run(["a", "b", "c", "d"], 4, generation={"seed": 7, "temperature": 1.0})
    assert (row["x"], row["x_error"]) == (["a", "b", "c", "d"], None)
    assert row["x_meta"]["recovery"] == "single_choices"
    configs = [attempt.generation_config for attempt in client.attempts]
    assert [(config.n, config.seed) for config in configs] == [(4, 7), (1, 8), (1, 9), (1, 10)]
    assert (counters.num_attempts, counters.num_wasted_attempts, counters.num_failed) == (4, 0, 0)


def test_only_the_missing_answers_are_fetched() -> None:
    """Without a seed none is invented."""
    [row], _, client = run([["a", "b"], "c"], 3, generation={"seed": None, "temperature": 1.0})
    assert row["x"] == ["a", "b", "c"]
    assert [attempt.generation_config.seed for attempt in client.attempts] == [None, None]


@pytest.mark.parametrize(("num", "expected"), [(1, "a"), (2, ["a", "b"])])
def test_answers_beyond_those_that_were_wanted_are_left_out(num: int, expected: Any) -> None:
    """The first ones are kept, with what was told of them."""
    reply = Completion(("a", "b", "c"), ("stop", "stop", "length"), ("x", "y", "z"))
    [row], _, _ = run([reply], num, reasoning_column=True)
    assert row["x"] == expected
    assert row["x_meta"]["finish_reason"] == ("stop" if num == 1 else "stop,stop")


def test_an_answer_is_kept_rather_than_a_filtered_one() -> None:
    """Where the server gave more than were wanted."""
    reply = Completion(("", "b"), ("content_filter", "stop"), choice_errors=(FILTERED, None))
    [row], _, _ = run([reply], 1)
    assert (row["x"], row["x_error"]) == ("b", None)


def test_a_filtered_answer_is_null_beside_the_others_and_the_error_names_it() -> None:
    """The paid one is kept; the row counts as failed."""
    reply = Completion(("a", ""), ("stop", "content_filter"), choice_errors=(None, FILTERED))
    [row], counters, _ = run([reply])
    assert row["x"] == ["a", None]
    assert row["x_error"] == "content_filter: choice 1: The server filtered the answer."
    assert counters.errors == {"content_filter": 1}


def test_an_answer_that_cannot_be_parsed_does_not_cost_the_others() -> None:
    """Null for it alone."""
    [row], _, _ = run([["1", "two", "3"]], 3, parser=number, output_type=pa.int64())
    assert row["x"] == [1, None, 3]
    assert row["x_error"].startswith("parse: choice 1: ")


def test_a_row_without_any_answer_has_no_list() -> None:
    """And each reason."""
    [row], _, _ = run([["one", "two"]], parser=number, output_type=pa.int64())
    assert row["x"] is None
    assert "choice 0: " in row["x_error"]
    assert "choice 1: " in row["x_error"]


def test_a_missing_answer_that_cannot_be_fetched_is_null() -> None:
    """With the words of the server."""
    [row], _, _ = run(["a", RowError("not again")])
    assert (row["x"], row["x_error"]) == (["a", None], "row_error: choice 1: not again")


def test_exploded_answers_that_are_missing_have_no_row() -> None:
    """No null without a reason: `X_choice` skips the number, and the recovery says so."""
    reply = Completion(("", "b", "c"), choice_errors=(FILTERED, None, None))
    rows, counters, _ = run([reply], 3, explode=True)
    assert [(row["x"], row["x_choice"], row["x_error"]) for row in rows] == [("b", 1, None), ("c", 2, None)]
    assert {row["x_meta"]["recovery"] for row in rows} == {"lost_choices"}
    assert counters.num_failed == 0


CHOICE = st.sampled_from(["1", "bad", FILTERED])


@settings(max_examples=40, deadline=None)
@given(
    first=st.lists(CHOICE, min_size=1, max_size=5).filter(lambda choices: set(choices) != {FILTERED}),
    others=st.lists(st.sampled_from(["2", "bad", "refused"]), min_size=4, max_size=4),
    num=st.integers(2, 4),
)
def test_a_null_has_a_reason_beside_it_and_a_reason_a_null(first: list[str], others: list[str], num: int) -> None:
    """Whatever the server gives: the list has n items, and there is an error if and only if one of them is null."""
    errors = tuple(choice if choice == FILTERED else None for choice in first)
    reply = Completion(tuple("" if error else choice for choice, error in zip(first, errors, strict=True)))
    reply = Completion(reply.texts, choice_errors=errors if any(errors) else ())
    script = [reply, *(RowError("refused") if other == "refused" else other for other in others)]
    [row], counters, client = run(script, num, parser=number, output_type=pa.int64(), generation={"seed": 1})
    items = [None] * num if row["x"] is None else row["x"]
    assert len(items) == num
    assert (row["x_error"] is not None) == (None in items)
    assert (row["x"] is None) == (set(items) == {None})
    assert counters.num_attempts == len(client.attempts) == 1 + max(0, num - len(first))
