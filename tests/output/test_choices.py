"""Answers that are one of some labels."""

from __future__ import annotations

import math
import pickle

import pyarrow as pa
import pytest

from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import ConfigError, ParseError
from nemo_llm_stage.output import ChoiceOutput

ANSWER = Completion(texts=("",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Positive", "Positive"),
        (" positive\n", "Positive"),
        ("**Positive**.", "Positive"),
        ('"NEGATIVE"', "negative"),
        ("N/A", "n/a"),
        ("<think>negative?</think>\nPositive", "Positive"),
    ],
)
def test_case_and_what_stands_around_do_not_matter(text: str, expected: str) -> None:
    """The value is the choice as it was given."""
    output = pickle.loads(pickle.dumps(ChoiceOutput(["Positive", "negative", "n/a"])))
    assert expected == output.parse(text, ANSWER, 0)


@pytest.mark.parametrize("text", ["", "pos", "It is positive", "positive, negative", "Positive or not"])
def test_an_answer_that_only_contains_a_choice_is_refused(text: str) -> None:
    """The message names the choices, for the model to choose again."""
    with pytest.raises(ParseError, match="exactly one of: 'Positive', 'negative'"):
        ChoiceOutput(["Positive", "negative"]).parse(text, ANSWER, 0)


def test_choices_that_differ_in_case_alone_are_told_apart() -> None:
    """Where they cannot be, the answer is refused."""
    output = ChoiceOutput(["A", "a", "+", "-"])
    assert [output.parse(text, ANSWER, 0) for text in ("A", "a", " - ")] == ["A", "a", "-"]
    with pytest.raises(ParseError):
        output.parse("'a'", ANSWER, 0)


def test_a_label_guided_by_a_schema_comes_in_quotes() -> None:
    """Which then tell it apart like any other text."""
    output = ChoiceOutput(["A", "a", 'say "a"'], guided="json")
    assert [output.parse(text, ANSWER, 0) for text in ('"A"', '"a"', '"say \\"a\\""', "A")] == [
        "A",
        "a",
        'say "a"',
        "A",
    ]


@pytest.mark.parametrize("choices", [[], ["a", "a"], ["a", ""], "abc", ["a", 1]])
def test_choices_that_cannot_work_are_refused(choices: list[str]) -> None:
    """When the output is made."""
    with pytest.raises(ConfigError, match="choices"):
        ChoiceOutput(choices)


def test_the_server_is_guided_as_asked() -> None:
    """By vLLM's parameter, by a schema, or not at all."""
    assert ChoiceOutput(["a", "b"], guided=False).request_kwargs() == {}
    schema = ChoiceOutput(["a", "b"], guided="json").request_kwargs()["response_format"]["json_schema"]["schema"]
    assert schema == {"type": "string", "enum": ["a", "b"]}
    guide = {"structured_outputs": {"choice": ["a", "b"]}}
    assert ChoiceOutput(["a", "b"]).request_kwargs() == {"extra_body": guide}


def test_the_certainty_of_a_label_is_the_sum_of_its_tokens() -> None:
    """For chats and plain completions; null where the server does not say."""
    output = ChoiceOutput(["yes", "no"], guided=False, logprobs=True)
    assert output.request_kwargs() == {"logprobs": True}
    chat = {"content": [{"token": "y", "logprob": -0.25}, {"token": "es", "logprob": -0.5}]}
    completion = Completion(texts=("no", "yes", "yes"), logprobs=(None, chat, {"token_logprobs": [-1.0, None]}))
    values = [output.parse(text, completion, choice) for choice, text in enumerate(completion.texts)]
    assert [value["logprob"] for value in values] == [None, -0.75, -1.0]
    assert math.isclose(pa.array(values, type=output.arrow_type)[1]["logprob"].as_py(), -0.75)
