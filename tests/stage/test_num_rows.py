"""Rows that a stage drops, and answers that become rows of their own."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from nemo_llm_stage import Completion, ConfigError, Counters, InputError, LLMStage, MultiColumnStage, RowError
from nemo_llm_stage.testing import ScriptedClient

SCORE = {"parser": lambda text: int(text), "output_type": pa.int64(), "max_reasks": 0}


def make_stage(script: Any, **settings: Any) -> LLMStage:
    common = {"model": "m", "prompt": "{{ text }}", "output_column": "x", "has_meta": False}
    return LLMStage(client=ScriptedClient(script), **{**common, **settings})


def process(stage: Any, table: Any) -> Any:
    try:
        return stage.process(table)
    finally:
        stage.close()


def table_of(num_rows: int) -> pa.Table:
    return pa.table({"text": [str(i) for i in range(num_rows)], "lang": ["en", "fr"] * (num_rows // 2)})


def echo(messages: list[dict[str, Any]]) -> str:
    return messages[-1]["content"]


def test_rows_for_which_the_expression_is_false_are_dropped() -> None:
    """The others keep their order; columns of the input may be used beside the answer."""
    stage = make_stage(["3", "1", "2", "5"], keep_if="x >= 2 and lang == 'en'", **SCORE)
    assert stage.changes_num_rows
    out = process(stage, table_of(4))
    assert out.column("text").to_pylist() == ["0", "2"]
    assert out.schema.names == ["text", "lang", "x", "x_error", "x_skipped"]


def test_a_frame_keeps_the_index_of_the_rows_that_stay() -> None:
    """As when it is filtered by hand."""
    out = process(
        make_stage(["3", "1"], keep_if="{{ x >= 2 }}", **SCORE), pd.DataFrame({"text": ["a", "b"]}, index=[7, 8])
    )
    assert list(out.index) == [7]


def test_a_row_without_an_answer_stays() -> None:
    """Failed, skipped, or null: it cannot be told."""
    stage = make_stage(["1", RowError("no"), "9"], keep_if="x >= 2", **SCORE)
    table = pa.table({"text": ["a", "b", "c", None]})
    assert process(stage, table).column("text").to_pylist() == ["b", "c", None]


def test_other_columns_errors_do_not_keep_a_row() -> None:
    """Only those that the expression uses."""
    client = ScriptedClient(lambda messages: "bad" if echo(messages) == "b" else "1")
    columns = [("a", "a {{ text }}"), ("b", "b")]
    common = {"client": client, "model": "m", "has_meta": False, **SCORE}
    stages = [LLMStage(output_column=name, prompt=prompt, **common) for name, prompt in columns]
    stage = MultiColumnStage(stages, keep_if="a > 1")
    outcomes = stage.submit([{"text": "t"}]).result()
    extended = stage.extend(pa.table({"text": ["t"]}), outcomes)
    stage.close()
    assert (extended.table.num_rows, extended.dropped) == (0, {0})
    counters = Counters()
    counters.count(outcomes[0], is_dropped=True)
    assert (counters.num_rows, counters.num_dropped, counters.num_failed) == (1, 1, 0)


def test_fields_of_a_struct_may_be_used() -> None:
    """By name."""
    schema = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}
    out = process(make_stage(['{"score": 1}', '{"score": 8}'], parser=schema, keep_if="x.score > 5"), table_of(2))
    assert out.column("text").to_pylist() == ["1"]


@pytest.mark.parametrize(
    ("keep_if", "words"),
    [
        ("x > 2", "keep_if 'x > 2' cannot be evaluated: .*not supported.* \\(x is string\\)"),
        ("x.score > 2", "keep_if 'x.score > 2' cannot be evaluated: .*no attribute 'score'"),
        ("x >", "template, line 1"),
        ("row", "uses the row as a whole; name the columns"),
    ],
)
def test_an_expression_that_cannot_work_is_refused(keep_if: str, words: str) -> None:
    """Before anything is asked: by the types of the answers."""
    with pytest.raises(ConfigError, match=words):
        make_stage([], keep_if=keep_if)


def test_a_missing_column_is_told() -> None:
    """As of a prompt."""
    with pytest.raises(InputError, match=r"keep_if uses column 'langg', which .* did you mean 'lang'"):
        make_stage([], keep_if="langg == 'en'").check_columns(["text", "lang"])


def test_a_row_on_which_the_expression_fails_stays(caplog: pytest.LogCaptureFixture) -> None:
    """And is told of once."""
    stage = make_stage(["a", "b"], keep_if="text // 2 == 1")
    with caplog.at_level(logging.WARNING, logger="nemo_llm_stage"):
        assert process(stage, table_of(2)).num_rows == 2
    assert len(caplog.records) == 1


def test_answers_become_rows() -> None:
    """In the order of rows and answers; a row that failed has one, without a number."""
    script = [Completion(("a", "b")), RowError("no"), Completion(("c", "d"))]
    stage = pickle.loads(pickle.dumps(make_stage(script, generation_config={"n": 2}, explode=True)))
    assert stage.changes_num_rows
    out = process(stage, pa.table({"text": ["0", "1", "2"]}))
    assert out.schema.field("x").type == pa.string()
    assert out.schema.field("x_choice").type == pa.int32()
    assert out.select(["text", "x", "x_choice"]).to_pylist() == [
        {"text": "0", "x": "a", "x_choice": 0},
        {"text": "0", "x": "b", "x_choice": 1},
        {"text": "1", "x": None, "x_choice": None},
        {"text": "2", "x": "c", "x_choice": 0},
        {"text": "2", "x": "d", "x_choice": 1},
    ]


def test_fields_and_thinking_of_exploded_answers_are_their_own() -> None:
    """Each in its row."""
    script = [Completion(('<think>p</think>{"year": 1}', '<think>q</think>{"year": 2}'))]
    schema = {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}
    settings = {"parser": schema, "field_columns": True, "reasoning_column": True, "explode": True}
    out = process(make_stage(script, generation_config={"n": 2}, **settings), pa.table({"text": ["0"]}))
    assert out.column("x_year").to_pylist() == [1, 2]
    assert out.column("x_reasoning").to_pylist() == ["p", "q"]


def test_exploded_answers_may_be_dropped_one_by_one() -> None:
    """The best of several stays; its row is dropped where none does."""
    script = [Completion(("1", "5")), Completion(("1", "2"))]
    stage = make_stage(script, generation_config={"n": 2}, explode=True, keep_if="x > 2 and x_choice == 1", **SCORE)
    outcomes = stage.submit([{"text": "0"}, {"text": "1"}]).result()
    extended = stage.extend(pa.table({"text": ["0", "1"]}), outcomes)
    stage.close()
    assert extended.table.select(["text", "x"]).to_pylist() == [{"text": "0", "x": 5}]
    assert (list(extended.rows), extended.dropped) == ([0], {1})


def test_explode_needs_several_answers() -> None:
    """Or it is a mistake."""
    with pytest.raises(ConfigError, match="set n in generation_config above 1"):
        make_stage([], explode=True)
