"""Plain answers, functions of the user's, patterns, and the thinking before an answer."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pyarrow as pa
import pytest

from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import ConfigError, ParseError
from nemo_llm_stage.output import (
    FunctionOutput,
    Output,
    RegexOutput,
    TextOutput,
    output_of,
    reask_messages,
    split_reasoning,
    without_reasoning,
)


def parse(output: Output, text: str) -> Any:
    """Parse `text` with a pickled copy, and check that Arrow holds the value."""
    value = pickle.loads(pickle.dumps(output)).parse(text, Completion(texts=(text,)), 0)
    assert pa.array([value], type=output.arrow_type).to_pylist() == [value]
    return value


def test_text_is_kept_as_it_is() -> None:
    """Blanks, thinking and all."""
    assert parse(TextOutput(), " <think>a</think>\nb ") == " <think>a</think>\nb "
    assert TextOutput().request_kwargs() == {}


def test_text_that_no_file_can_hold_is_refused() -> None:
    """Half a surrogate pair would break the whole partition when written."""
    for output in (TextOutput(), FunctionOutput(str)):
        with pytest.raises(ParseError, match="not valid Unicode"):
            output.parse("ok \ud800", Completion(texts=("",)), 0)


def test_a_function_makes_a_value_of_its_type() -> None:
    """A string where no type is given."""
    assert parse(FunctionOutput(str.upper), "a") == "A"
    assert parse(FunctionOutput(int, pa.int64()), "4") == 4
    assert parse(FunctionOutput(str.split, pa.list_(pa.string())), "a b") == ["a", "b"]


def test_a_functions_failure_or_wrong_type_fails_the_answer() -> None:
    """With words that say why."""
    with pytest.raises(ParseError, match=r"ValueError: invalid literal .* 'x'"):
        FunctionOutput(int, pa.int64()).parse("x", Completion(texts=("x",)), 0)
    with pytest.raises(ParseError, match=r"returned \['x'\], which is not int64"):
        FunctionOutput(str.split, pa.int64()).parse("x", Completion(texts=("x",)), 0)


@pytest.mark.parametrize(
    ("pattern", "arrow_type", "text", "expected"),
    [
        (r"Score: (\d)", pa.int64(), "so\nScore: 4. Score: 5", 4),
        (r"Score: (\d)", None, "Score: 4", "4"),
        (r"\d+", None, "a 12 b", "12"),
        (r"(?P<a>\d)(?P<b>x)?", {"a": pa.int8()}, "7y", {"a": 7, "b": None}),
        (r"(?P<a>\d+)-(?P<b>\d+)", pa.int32(), "1-22", {"a": 1, "b": 22}),
        (r"(\d)", None, "<think>1</think>2", "2"),
    ],
)
def test_groups_become_values(pattern: str, arrow_type: Any, text: str, expected: object) -> None:
    """One group a value, named groups a struct, read as the types given."""
    assert expected == parse(RegexOutput(pattern, arrow_type), text)


def test_an_answer_without_a_match_is_refused() -> None:
    """Also one whose match is not of the type."""
    with pytest.raises(ParseError, match="does not match the pattern"):
        parse(RegexOutput(r"\d"), "none")
    with pytest.raises(ParseError, match="'4a' is not int64"):
        parse(RegexOutput(r"\w+", pa.int64()), "4a")


@pytest.mark.parametrize(
    ("pattern", "arrow_type", "message"),
    [("(", None, "no regular expression"), ("(a)(b)", None, "names"), ("(?P<a>x)", {"b": pa.int8()}, "no group 'b'")],
)
def test_a_pattern_that_cannot_work_is_refused(pattern: str, arrow_type: Any, message: str) -> None:
    """When the output is made."""
    with pytest.raises(ConfigError, match=message):
        RegexOutput(pattern, arrow_type)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer", (None, "answer")),
        ("<think>\nwhy\n</think>\n\nanswer\n", ("why", "answer\n")),
        ("why</think>answer", ("why", "answer")),
        ("\n<think>cut off", ("cut off", "")),
        ("<think>\n\n</think>\n\nanswer", (None, "answer")),
        ("I <think> so", (None, "I <think> so")),
        ("<think>a</think>b</think>c", ("a", "b</think>c")),
        ("I write <think>a</think>b", (None, "I write <think>a</think>b")),
        ('{"a": "ends with </think> here"}', (None, '{"a": "ends with </think> here"}')),
        ('{\n  "a": "\\"</think>\\"",\n  "b": 1}', (None, '{\n  "a": "\\"</think>\\"",\n  "b": 1}')),
        ("Close with `</think>`.", (None, "Close with `</think>`.")),
        (
            '"quoted </think>" and `</think>`\nwhy\n</think>\n\n{"a": "</think>"}',
            ('"quoted </think>" and `</think>`\nwhy', '{"a": "</think>"}'),
        ),
    ],
)
def test_thinking_is_split_from_the_answer(text: str, expected: tuple[str | None, str]) -> None:
    """Also where a tag is missing."""
    assert expected == split_reasoning(text)


def test_many_tags_take_linear_time() -> None:
    """A megabyte of them is read in milliseconds."""
    text = '"' + "</think>" * 125_000
    assert split_reasoning(text) == (None, text)


def test_an_answer_whose_server_told_the_thinking_apart_is_not_cut() -> None:
    """It may speak of the tags."""
    text = "Put </think> at the end."
    assert without_reasoning(text, Completion((text,), ("stop",), ("hm",)), 0) == text
    assert without_reasoning(text, Completion((text,), ("stop",), (None,)), 0) == "at the end."
    assert RegexOutput("Put").parse(text, Completion((text,), ("stop",), ("hm",)), 0) == "Put"


def test_asking_again_shows_the_answer_and_what_is_wrong() -> None:
    """What was asked is not modified."""
    asked = [{"role": "user", "content": "Q"}]
    messages = reask_messages(asked, "bad", ParseError("it is bad."))
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "bad"
    assert "it is bad." in messages[2]["content"]
    assert len(asked) == 1


def test_a_user_may_hand_over_many_kinds() -> None:
    """Each means the output one would expect."""
    kinds = [None, str, ["a", "b"], {"type": "integer"}, int, list[int], re.compile("x"), str.upper, TextOutput()]
    described = [output_of(kind).describe()["kind"] for kind in kinds]
    assert described == ["text", "text", "choices", "json", "json", "json", "regex", "function", "text"]
    assert output_of(len, pa.int64()).arrow_type == pa.int64()
    assert output_of(re.compile(r"\d"), pa.int64()).arrow_type == pa.int64()


def test_what_is_no_output_is_refused() -> None:
    """Also a type for an output that has its own."""
    with pytest.raises(ConfigError, match="no output"):
        output_of(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="arrow_type belongs to"):
        output_of(["a"], pa.string())
