"""Prompts: which messages a row becomes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nemo_llm_stage.errors import ConfigError, InputError, PromptError, SkippedError
from nemo_llm_stage.prompt import Prompt

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def shout(row: Mapping[str, Any]) -> str:
    return str(row["text"]).upper()


def test_turns_come_in_order() -> None:
    """System, the column's turns, examples, the user's turn."""
    prompt = Prompt(
        "Q: {{ q }}",
        system_prompt="Be {{ mood }}.",
        messages=[{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}],
        messages_column="chat",
    )
    messages = prompt.render({"q": "2+2", "mood": "kind", "chat": CHAT})
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [messages[0]["content"], messages[-1]["content"]] == ["Be kind.", "Q: 2+2"]
    assert prompt.required_columns == {"q", "mood", "chat"}


def test_templates_come_from_files(tmp_path: Path) -> None:
    """A path is read, a text is the template."""
    (tmp_path / "p.txt").write_text("Grüße {{ x }}\n", encoding="utf-8")
    assert Prompt.from_file(tmp_path / "p.txt").render({"x": 1}) == [{"role": "user", "content": "Grüße 1"}]
    assert Prompt("a", system_prompt=tmp_path / "p.txt").required_columns == {"x"}


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """Missing or with a mistake in it."""
    (tmp_path / "bad.txt").write_text("{% if %}")
    for name in ("none.txt", "bad.txt"):
        with pytest.raises(ConfigError, match=name):
            Prompt.from_file(tmp_path / name)


def test_a_function_makes_text_or_messages() -> None:
    """It gets the whole row; a system prompt goes first."""
    assert Prompt(shout, system_prompt="S").render({"text": "hi"}) == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "HI"},
    ]
    assert Prompt(lambda _row: CHAT).render({}) == CHAT
    assert Prompt(shout).needs_all_columns


@pytest.mark.parametrize("answer", [None, 3, ["text"], [{"role": "user"}]])
def test_a_function_must_make_messages(answer: object) -> None:
    """Anything else fails the row and is shown."""
    with pytest.raises(PromptError, match="the prompt function returned"):
        Prompt(lambda _row: answer).render({})  # type: ignore[arg-type, return-value]


def test_a_failing_function_fails_the_row() -> None:
    """With the exception's own words."""
    with pytest.raises(PromptError, match="KeyError: 'text'"):
        Prompt(shout).render({})


@pytest.mark.parametrize("value", [CHAT, tuple(CHAT), json.dumps(CHAT)])
def test_a_column_holds_the_conversation(value: object) -> None:
    """As a list of structs or as JSON text."""
    assert Prompt(messages_column="chat").render({"chat": value}) == CHAT


def test_only_protocol_fields_of_a_turn_are_sent() -> None:
    """The dataset's own fields and the nulls that Arrow fills structs up with stay behind."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}", "extra": None}}
    turn = {"role": "assistant", "content": None, "name": None, "score": 3, "tool_calls": [call]}
    del (expected := json.loads(json.dumps(call)))["function"]["extra"]
    assert Prompt(messages_column="c").render({"c": [turn]}) == [{"role": "assistant", "tool_calls": [expected]}]


def test_our_system_prompt_replaces_the_rows() -> None:
    """Many chat templates refuse a second system turn."""
    row = {"chat": [{"role": "system", "content": "old"}, *CHAT]}
    messages = Prompt(system_prompt="new", messages_column="chat").render(row)
    assert messages == [{"role": "system", "content": "new"}, *CHAT]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("not json", "not JSON"),
        (5, "not a list of messages"),
        ([{"from": "human", "value": "x"}], "without a role"),
        ([{"role": "user", "content": None}], "user turn without content"),
        ([{"role": "user", "content": 5}], "content that is no text"),
        ([{"role": "user", "content": ["x"]}], "part without a type"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://h/x"}}]}],
            "allow_remote_urls",
        ),
        (
            [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "file:///etc/x"}}]}],
            "neither a data",
        ),
        ([], "no messages"),
    ],
)
def test_what_is_no_conversation_fails_the_row(value: object, message: str) -> None:
    """Naming what is wrong with it."""
    with pytest.raises(PromptError, match=message):
        Prompt(messages_column="chat").render({"chat": value})


def test_turns_of_a_column_are_never_templates() -> None:
    """Braces in a conversation are text."""
    turns = [{"role": "user", "content": "{{ 7 * 7 }}{% if x %}"}]
    assert Prompt(messages_column="chat").render({"chat": turns}) == turns


def test_a_null_conversation_follows_on_null() -> None:
    """Skipped, failed, or left out."""
    with pytest.raises(SkippedError, match="column 'chat' is null"):
        Prompt("x", messages_column="chat").render({"chat": None})
    with pytest.raises(PromptError, match="column 'chat' is null"):
        Prompt("x", messages_column="chat", on_null="error").render({"chat": None})
    assert len(Prompt("x", messages_column="chat", on_null="empty").render({"chat": None})) == 1


def test_rows_are_skipped_by_expression() -> None:
    """Before anything else is looked at; its columns are required too."""
    prompt = Prompt("{{ text }}", skip_when="{{ lang != 'en' }}")
    assert prompt.required_columns == {"text", "lang"}
    assert prompt.render({"text": "a", "lang": "en"})
    with pytest.raises(SkippedError, match="skip_when"):
        prompt.render({"text": None, "lang": "de"})


def test_a_typo_names_the_nearest_column() -> None:
    """Whichever template it stands in."""
    with pytest.raises(InputError, match=r"'lnag'.*did you mean 'lang'"):
        Prompt("{{ text }}", skip_when="lnag == 'en'").check_columns(["text", "lang"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to ask"),
        ({"prompt": "x", "on_null": "ignore"}, "skip, error or empty"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "did you mean 'user'"),
        ({"messages": [{"role": "user", "text": "x"}]}, "role and content"),
        ({"messages": [{"role": "user", "content": 5}]}, "template's text or a path"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": "Text: {document}"}, r"no column: \{document\} is plain text, write \{\{ document \}\}"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    """When the prompt is made."""
    with pytest.raises(ConfigError, match=message):
        Prompt(**settings)


@pytest.mark.parametrize("text", ["one joke", '{"a": 1}', "{{ '{a}' }}", "{# {a} #}", "{a} {{ a }}", "{a} {{ row }}"])
def test_braces_that_are_meant_are_left(text: str) -> None:
    """And a prompt may well be the same for all rows."""
    assert Prompt(text).render({"a": "b"})


def test_a_pickled_prompt_renders_the_same() -> None:
    """Before and after use."""
    prompt = Prompt("{{ x }}", system_prompt="S", messages=CHAT)
    copy = pickle.loads(pickle.dumps(prompt))
    assert prompt.render({"x": 1}) == copy.render({"x": 1}) == pickle.loads(pickle.dumps(copy)).render({"x": 1})


def test_a_description_tells_prompts_apart() -> None:
    """Equal prompts are described equally, any change shows, and it is JSON."""
    descriptions = [
        json.dumps(prompt.describe(), sort_keys=True)
        for prompt in (
            Prompt("{{ x }}"),
            Prompt("{{ x }} "),
            Prompt("{{ x }}", system_prompt="S"),
            Prompt("{{ x }}", on_null="empty"),
            Prompt("{{ x }}", skip_when="x"),
            Prompt("{{ x }}", messages_column="x"),
            Prompt(shout),
            Prompt(lambda _row: "y"),
        )
    ]
    assert len(set(descriptions)) == len(descriptions)
    assert descriptions[0] == json.dumps(Prompt("{{ x }}").describe(), sort_keys=True)
