"""Answers in JSON: types, validation, and what of a faulty answer is put right."""

from __future__ import annotations

import datetime as dt
import enum
import json
import pickle
from typing import Any, Literal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator

from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import ConfigError, ParseError
from nemo_llm_stage.output import JsonOutput

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "integer"},
        "b": {"type": "string"},
        "c": {"type": "array", "items": {"type": "number"}},
    },
    "required": ["a"],
}


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Fact(BaseModel):
    subject: str = Field(min_length=1)
    year: int | None = None


class Page(BaseModel):
    title: str = Field(alias="Title")
    color: Color
    level: Literal["low", "high"]
    day: dt.date
    facts: list[Fact]
    counts: dict[str, int] = {}
    parent: Page | None = None
    box: tuple[float, float] = (0.0, 1.0)

    @field_validator("title")
    @classmethod
    def is_no_shouting(cls, title: str) -> str:
        """Refuse capitals and strip blanks."""
        if title.isupper():
            raise ValueError("do not shout")
        return title.strip()


def parse(schema: Any, text: str) -> Any:
    """Parse `text` with a pickled copy, and check that Arrow holds exactly the value."""
    output = pickle.loads(pickle.dumps(JsonOutput(schema)))
    value = output.parse(text, Completion(texts=(text,)), 0)
    assert pa.array([value], type=output.arrow_type).to_pylist() == [value]
    return value


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, pa.string()),
        ({"type": "integer"}, pa.int64()),
        ({"type": "number"}, pa.float64()),
        ({"type": "boolean"}, pa.bool_()),
        ({"type": ["string", "null"]}, pa.string()),
        ({"type": ["integer", "number"]}, pa.float64()),
        ({"enum": ["a", "b", None]}, pa.string()),
        ({"enum": [1, 2]}, pa.int64()),
        ({"const": 1.5}, pa.float64()),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, pa.int64()),
        ({"oneOf": [{"type": "string", "format": "date"}, {"type": "string"}]}, pa.string()),
        ({"allOf": [{"type": "integer"}]}, pa.int64()),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "boolean"}}}, pa.bool_()),
        ({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, pa.list_(pa.list_(pa.int64()))),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "number"}]}, pa.list_(pa.float64())),
        (SCHEMA, pa.struct([("a", pa.int64()), ("b", pa.string()), ("c", pa.list_(pa.float64()))])),
        (
            {"properties": {"z": {"type": "string"}, "y": {"type": "string"}}},
            pa.struct([("z", "string"), ("y", "string")]),
        ),
    ],
)
def test_a_schema_has_one_arrow_type(schema: dict[str, Any], expected: pa.DataType) -> None:
    """Properties in their order, optional or not."""
    assert expected == JsonOutput(schema).arrow_type


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        ({"type": "object"}, '{"x": [1, null]}', '{"x":[1,null]}'),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"x": 1}', '{"x":1}'),
        ({}, '"text"', '"text"'),
        ({"type": ["string", "integer"]}, '"1"', '"1"'),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]}, '{"a": 1}', '{"a":1}'),
        ({"type": "array"}, "[1, {}]", "[1,{}]"),
        ({"enum": ["a", 1]}, "1", "1"),
    ],
)
def test_what_has_no_arrow_type_is_kept_as_json(schema: dict[str, Any], text: str, expected: str) -> None:
    """Every value of such a column can be read with a JSON parser, plain texts included."""
    assert JsonOutput(schema).arrow_type == pa.string()
    assert expected == parse(schema, text)


def test_a_schema_that_holds_itself_ends_in_json() -> None:
    """The first level is typed, the repetition is JSON text."""
    node = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/n"}}}
    schema = {"$ref": "#/$defs/n", "$defs": {"n": node}}
    assert parse(schema, '{"v": 1, "next": {"v": 2}}') == {"v": 1, "next": '{"v":2}'}


def test_values_get_exactly_the_types() -> None:
    """Integers written as 1.0, numbers written as 1, keys left out and keys that the schema does not name."""
    assert parse(SCHEMA, '{"c": [1, 2.5], "a": 3.0, "other": 1}') == {"a": 3, "b": None, "c": [1.0, 2.5]}


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "b": "x"}',
        '```json\n{"a": 1, "b": "x"}\n```',
        'Sure! Here it is:\n\n```\n{"a": 1, "b": "x"}\n```\nAnything else?',
        'The set {a, b} gives {"a": 1, "b": "x"}.',
        '<think>Maybe {"a": 2}?</think>{"a": 1, "b": "x"}',
        'Maybe {"a": 2}?\n</think>\n\n{"a": 1, "b": "x"}',
        '{"a": 1, "b": "x",}',
        "{'a': 1, 'b': 'x'}",
        "{a: 1, b: 'x'} // done",
        '{"a": 1, /* the text */ "b": "x"}',
    ],
)
def test_only_the_form_of_an_answer_is_put_right(text: str) -> None:
    """Fences, prose, thinking, trailing commas, quotes, comments."""
    assert parse(SCHEMA, text) == {"a": 1, "b": "x", "c": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, "b": "two\nlines\tand } brackets { \\" quote"}', 'two\nlines\tand } brackets { " quote'),
        ("{'a': 1, 'b': 'it\\'s // no comment'}", "it's // no comment"),
        ('{"a": 1, "b": "```json",}', "```json"),
    ],
)
def test_putting_right_changes_no_content(text: str, expected: str) -> None:
    """What stands inside a string stays there."""
    assert parse(SCHEMA, text)["b"] == expected


def test_json_may_hold_the_closing_tag_of_thinking() -> None:
    """In a text of its own, that is: nothing is cut from within it."""
    value = {"a": 1, "b": "end it with </think>"}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    for text in (json.dumps(value), json.dumps(value, indent=2), f"Here:\n```json\n{json.dumps(value)}\n```"):
        assert parse(schema, text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("I cannot do that.", "not JSON"),
        ('{"a": 1', "ends before its last bracket"),
        ('{"a": {"a": 1}, "c": [1', "ends before its last bracket"),
        ('{"a": 1, "b": "x', "ends before its last bracket"),
        ('{"a": 1} {"a": 2}', "2 JSON values"),
        ('{"a": , "b": "x"}', "not JSON"),
        ('{"a": 1 "b": "x"}', "not JSON"),
        ('{"a": 01}', "not JSON"),
        ('{"a": 1, "b": "say "hi""}', "not JSON"),
        ('{"a": 1, "b": "\\alpha",}', "not JSON"),
        ('{"a": 1, "b": "\\ud800"}', "not JSON"),
        ('{"a": 1, "c": [NaN]}', "not JSON"),
        ('{"a": 1, "c": [1e400]}', "not JSON"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "not JSON"),
        ('[{"a": 1}]', "not of type"),
        ('{"a": "1"}', r'\$\.a: "1" is not of type "integer"'),
        ('{"a": true}', "not of type"),
        ('{"a": 1, "c": [1, "x"]}', r"\$\.c\[1\]"),
        ('{"a": 1e30}', "64 bits"),
        ('{"b": "x"}', '"a" is a required property'),
    ],
)
def test_anything_more_is_refused(text: str, message: str) -> None:
    """Nothing is completed, guessed or chosen; the message says what is wrong."""
    with pytest.raises(ParseError, match=message):
        parse(SCHEMA, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{x} " * 15_000, "more than 32 parts in brackets"),
        ('{"a":' * 12_000, "too many brackets"),
        ('{"a": 1, "c": [' + '"x", ' * 12_000 + "0,]}", "too many brackets"),
        (
            '{"a": 1, "c": [' + '"x", ' * 12_000 + "0]}",
            r'fit: \$\.c\[0\]: "x" is not of type "number"$',
        ),
        ('{"a": 1, "b": "' + "x" * 100_000 + '",}', "not JSON"),
        ("Here: " + '{"a": 1, "b": "' + "x" * 600_000 + '"}', "too long to be searched"),
    ],
    ids=["spans", "brackets", "strings", "errors", "repair", "search"],
)
def test_the_work_on_an_answer_gone_astray_is_bounded(text: str, message: str) -> None:
    """It is done while other rows wait."""
    with pytest.raises(ParseError, match=message):
        parse(SCHEMA, text)


def test_a_long_answer_is_taken_where_it_is_json() -> None:
    """Also between words, and by a model that would have thousands of complaints."""
    long = json.dumps({"a": 1, "b": "x" * 700_000})
    assert parse(SCHEMA, long)["b"] == "x" * 700_000
    fenced = json.dumps({"a": 1, "b": "x" * 100_000})
    assert parse(SCHEMA, f"Here:\n```json\n{fenced}\n```")["b"] == "x" * 100_000
    with pytest.raises(ParseError, match=r"\$\[0\]: \"x\" is not of type \"integer\""):
        parse(list[int], json.dumps(["x"] * 5_000))


leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5)
json_values = st.recursive(
    leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x), max_leaves=4
)
json_objects = st.dictionaries(st.text(max_size=3), json_values, max_size=3)


@settings(max_examples=60, deadline=None)
@given(json_objects, st.data())
def test_no_part_of_an_answer_passes_for_the_whole(value: dict[str, Any], data: st.DataObject) -> None:
    """However an answer was cut off, it is refused; whole, it comes out as it was."""
    text = json.dumps(value, indent=data.draw(st.sampled_from([None, 1])), ensure_ascii=data.draw(st.booleans()))
    output = JsonOutput({"type": "object", "properties": {}})
    completion = Completion(texts=(text,))
    assert json.loads(output.parse(f"So:\n{text}\n", completion, 0)) == value
    with pytest.raises(ParseError):
        output.parse(text[: data.draw(st.integers(0, len(text) - 1))], completion, 0)


def test_a_model_types_and_validates() -> None:
    """With its own validators, aliases, enums, dates and nesting."""
    facts = pa.list_(pa.struct([("subject", pa.string()), ("year", pa.int64())]))
    types = {"Title": "string", "color": "string", "level": "string", "day": "string", "facts": facts}
    types |= {"counts": "string", "parent": "string", "box": pa.list_(pa.float64())}
    assert JsonOutput(Page).arrow_type == pa.struct(list(types.items()))
    answer = {"Title": " x ", "color": "red", "level": "low", "day": "2026-01-02", "facts": [{"subject": "s"}]}
    value = {**answer, "Title": "x", "facts": [{"subject": "s", "year": None}], "counts": "{}", "parent": None}
    assert parse(Page, json.dumps(answer)) == {**value, "box": [0.0, 1.0]}


def test_a_models_complaints_reach_the_answer() -> None:
    """Field by field, in the validators' words."""
    answer = {"Title": "X", "color": "green", "level": "low", "day": "2026-01-02", "facts": [{"subject": ""}]}
    with pytest.raises(ParseError, match=r"\$\.Title: .*do not shout; \$\.color: .*; \$\.facts\[0\]\.subject: "):
        parse(Page, json.dumps(answer))


def test_other_types_of_pydantic_serve_too() -> None:
    """A list of models, a number."""
    assert parse(list[Fact], '```\n[{"subject": "s", "year": 1}]\n```') == [{"subject": "s", "year": 1}]
    assert parse(int, " 4 ") == 4


def test_formats_are_validated() -> None:
    """A date is one."""
    with pytest.raises(ParseError, match=r'\$: "2026-02-30" is not a "date"'):
        parse({"type": "string", "format": "date"}, '"2026-02-30"')


def test_the_schema_is_sent_unless_told_otherwise() -> None:
    """As response_format; strict only on request."""
    schema = SCHEMA | {"title": "My answer!"}
    sent = JsonOutput(schema, strict=True).request_kwargs()["response_format"]
    assert sent == {"type": "json_schema", "json_schema": {"name": "My_answer_", "schema": schema, "strict": True}}
    assert JsonOutput(Fact).request_kwargs()["response_format"]["json_schema"]["schema"] == Fact.model_json_schema()
    assert JsonOutput(schema, guided=False).request_kwargs() == {}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "strin"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"$ref": "#/$defs/missing"}, "/missing"),
        ({"$ref": "http://127.0.0.1:9/schema"}, "127.0.0.1"),
        (5, "no JSON Schema"),
    ],
)
def test_what_is_no_schema_is_refused(schema: Any, message: str) -> None:
    """Nothing is fetched to find out."""
    with pytest.raises(ConfigError, match=message):
        JsonOutput(schema)


def test_a_description_is_json_and_tells_schemas_apart() -> None:
    """A changed model shows."""
    described = {
        json.dumps(JsonOutput(kind).describe(), sort_keys=True) for kind in (SCHEMA, {}, Fact, Page, list[Fact])
    }
    assert len(described) == 5
