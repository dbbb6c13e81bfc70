from __future__ import annotations

import json
from typing import Literal

import jsonschema_rs
import pytest
from pydantic import BaseModel, Field

from nemo_llm_stage.testing.simulator.constrained import SchemaError, json_answer


class Node(BaseModel):
    name: str = Field(min_length=3, max_length=8)
    kind: Literal["leaf", "branch"]
    weight: float | None = None
    children: list[Node] = []
    parent: Node | None = None


class Review(BaseModel):
    score: int = Field(ge=1, le=5)
    share: float = Field(gt=0, lt=1)
    tags: list[str] = Field(min_length=2, max_length=4)
    is_good: bool
    root: Node


SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a", "b"]},
    {"type": "array", "items": {"type": "integer", "minimum": -3, "maximum": -1}, "minItems": 3},
    {"type": "array", "items": {"enum": [1, "two", None]}, "maxItems": 0},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "minItems": 2},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 2},
    {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 20},
    {"type": "number", "minimum": 0.1, "maximum": 0.2},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.001},
    {"type": "number", "maximum": -5},
    {"type": "number"},
    {"type": ["string", "null"], "maxLength": 4},
    {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    {"oneOf": [{"const": {"a": 1}}, {"const": 2}]},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "null"}}}, {"required": ["a"]}]},
    {"properties": {"a": {"$ref": "#/$defs/x~1y"}}, "required": ["a"], "$defs": {"x/y": {"const": 3}}},
    {"type": "string", "format": "date-time"},
    {"type": "string", "minLength": 200},
    {"enum": ["only"]},
    True,
    Review.model_json_schema(),
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_answers_follow_their_schema(schema):
    """Whatever the prompt, the answer is valid; the same prompt gives the same answer."""
    validator = jsonschema_rs.validator_for(schema)
    for number in range(30):
        text = json_answer(schema, f"key {number}")
        validator.validate(json.loads(text))
        assert text == json_answer(schema, f"key {number}")


def test_answers_differ_between_prompts():
    """A free text carries the prompt's key, and choices vary."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "boolean"}}}
    answers = [json.loads(json_answer(schema, str(number))) for number in range(20)]
    assert len({answer["a"] for answer in answers}) == 20
    assert {True, False} == {answer["b"] for answer in answers}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "objekt"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.com/schema"},
        {"enum": []},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "string", "pattern": "^a$"},
        {"$ref": "#"},
        17,
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused(schema):
    """No value, or none that this writer can find."""
    with pytest.raises(SchemaError):
        json_answer(schema, "key")
