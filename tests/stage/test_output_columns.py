"""What becomes of results: columns of declared types, whole or field by field."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import pytest

from nemo_llm_stage import Completion, ConfigError, LLMStage
from nemo_llm_stage.testing import ScriptedClient

SCHEMA = {
    "type": "object",
    "properties": {"year": {"type": "integer"}, "names": {"type": "array", "items": {"type": "string"}}},
    "required": ["year"],
}


def process(script: list[Any], **settings: Any) -> pa.Table:
    stage = LLMStage(
        **{"client": ScriptedClient(script), "model": "m", "prompt": "{{ text }}", "output_column": "x"}
        | {"has_meta": False, "max_reasks": 0, "parser": SCHEMA}
        | settings
    )
    stage = pickle.loads(pickle.dumps(stage))
    try:
        return stage.process(pa.table({"text": [str(i) for i in range(len(script))]})).drop_columns("text")
    finally:
        stage.close()


def test_a_struct_may_become_a_column_for_each_field() -> None:
    """Of the schema's types; null where the row failed or the answer left the field out."""
    out = process(['{"year": 1, "names": ["a"]}', '{"year": 2}', "no"], field_columns=True)
    assert out.schema.names == ["x_year", "x_names", "x_error", "x_skipped"]
    assert out.schema.types == [pa.int64(), pa.list_(pa.string()), pa.string(), pa.string()]
    assert out.column("x_year").to_pylist() == [1, 2, None]
    assert out.column("x_names").to_pylist() == [["a"], None, None]


def test_fields_of_several_answers_are_lists() -> None:
    """One item for each answer; null for one without a value, which the error names."""
    script = [['{"year": 1}', '{"year": 2, "names": []}'], ["no", '{"year": 3}']]
    out = process(script, field_columns=True, generation_config={"n": 2})
    assert out.column("x_year").to_pylist() == [[1, 2], [None, 3]]
    assert out.column("x_names").to_pylist() == [[None, []], [None, None]]


def test_all_failed_rows_have_the_declared_types() -> None:
    """As in any other file."""
    out = process(["no", "no"], field_columns=True)
    assert out.schema.types == [pa.int64(), pa.list_(pa.string()), pa.string(), pa.string()]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"parser": None}, "needs an answer with fields; x is string"),
        ({"parser": {"type": "object", "properties": {"error": {"type": "string"}}}}, "two columns 'x_error'"),
    ],
)
def test_fields_that_cannot_be_columns_are_refused(settings: dict[str, Any], words: str) -> None:
    """At construction."""
    with pytest.raises(ConfigError, match=words):
        process([], field_columns=True, **settings)


def test_what_a_failed_row_answered_is_kept_raw() -> None:
    """Even where Arrow could not hold it as it is."""
    out = process([Completion(("no \ud800",), ("stop",)), '{"year": 1}'], has_meta=True)
    assert [meta["raw"] for meta in out.column("x_meta").to_pylist()] == ["no ?", None]
