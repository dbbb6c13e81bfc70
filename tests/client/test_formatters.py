"""
Conversations as text for base models.

What chat templates should give was written down from transformers 5.23's apply_chat_template. Where transformers is
installed, the last test asks it again.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from nemo_llm_stage.client.formatters import HFChatTemplateFormatter, PlainFormatter
from nemo_llm_stage.errors import ConfigError, PromptError

TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be <kind> & 'brief'."},
    {"role": "user", "content": " Grüße {{ 7 * 7 }} {% if x %}\n"},
    {"role": "assistant", "content": "Ja.", "reasoning": "why", "name": None},
    {"role": "user", "content": "Why?"},
]

TAGGED = """\
{{ bos_token }}
{% for message in messages %}
  {% if message.role == 'assistant' %}
    {% generation %}
[A] {{ message.content }}{{ eos_token }}
    {% endgeneration %}
  {% else %}
[{{ message.role | upper }}] {{ message['content'] | trim }}
  {% endif %}
{% endfor %}
{% if add_generation_prompt %}
[A]
{%- endif %}
"""
COUNTED = """\
{%- set ns = namespace(users=0, last='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- continue -%}{%- endif -%}
    {%- if message.role == 'user' -%}{%- set ns.users = ns.users + 1 -%}{%- endif -%}
    {%- set ns.last = message -%}
{%- endfor -%}
{{- ns.users }} {{ ns.last | tojson }} {{ messages[2].reasoning_content }} {{ 'name' in messages[2] }} {{ missing }}
{{ messages[0] | tojson(indent=1, sort_keys=true) }}{{ tools is none }}{{ mode }}
"""
EXPECTED = {
    "tagged": "<s>\n[SYSTEM] Be <kind> & 'brief'.\n[USER] Grüße {{ 7 * 7 }} {% if x %}\n[A] Ja.</s>\n[USER] Why?\n[A]",
    "counted": (
        '2 {"role": "user", "content": "Why?"} why False \n'
        '{\n "content": "Be <kind> & \'brief\'.",\n "role": "system"\n}Truex'
    ),
}


@pytest.mark.parametrize(("name", "source"), [("tagged", TAGGED), ("counted", COUNTED)])
def test_a_template_gives_the_text_that_transformers_gives(name: str, source: str) -> None:
    """Blanks, tags, tokens, JSON, loop controls and the names of thinking."""
    formatter = HFChatTemplateFormatter(source, variables={"bos_token": "<s>", "eos_token": "</s>", "mode": "x"})
    assert EXPECTED[name] == formatter.format_conversation(TURNS)


def test_the_assistants_turn_may_be_left_unopened() -> None:
    """For templates whose conversation ends with what is to be continued."""
    formatter = HFChatTemplateFormatter("{{ add_generation_prompt }}", add_generation_prompt=False)
    assert formatter.format_conversation(TURNS) == "False"


def test_a_tokenizers_config_tells_template_and_tokens(tmp_path: Path) -> None:
    """By its path or its folder's; tokens as text or as objects; among several templates the default one."""
    source = "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ messages[0].content }}"
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "unk_token": None}
    for template in (source, [{"name": "tools", "template": "x"}, {"name": "default", "template": source}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
        for path in (tmp_path, str(tmp_path / "tokenizer_config.json")):
            text = HFChatTemplateFormatter(path).format_conversation([{"role": "user", "content": "Hi"}])
            assert text == "<s></s>Hi"


def test_a_template_file_beside_the_config_wins(tmp_path: Path) -> None:
    """As newer tokenizers are saved; the tokens still come from the config."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "chat_template": "old {{ x }}"}))
    (tmp_path / "chat_template.jinja").write_text("new {{ bos_token }}")
    for path in (tmp_path, tmp_path / "tokenizer_config.json", tmp_path / "chat_template.jinja"):
        assert HFChatTemplateFormatter(path).format_conversation(TURNS) == "new <s>"


def test_what_holds_no_template_is_refused(tmp_path: Path) -> None:
    """Naming the path, or the line of the mistake."""
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    for path, message in (
        ("", "holds no chat template"),
        ("none.json", "cannot be read"),
        ("broken.json", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=message):
            HFChatTemplateFormatter(tmp_path / path)
    with pytest.raises(ConfigError, match="line 2"):
        HFChatTemplateFormatter("a\n{% if %}")


def test_a_template_that_refuses_fails_the_row() -> None:
    """With the template's own words."""
    formatter = HFChatTemplateFormatter("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(PromptError, match="roles must alternate"):
        formatter.format_conversation(TURNS)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__name__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ ('{0.__class__.__mro__}' | attr('format'))(messages).x }}",
        "{{ lipsum.__globals__ }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    """Chat templates come from strangers."""
    with pytest.raises(PromptError):
        HFChatTemplateFormatter(source).format_conversation([{"role": "user", "content": "x"}])


def test_a_formatter_can_be_pickled_and_changes_nothing() -> None:
    """Before and after use."""
    formatter = HFChatTemplateFormatter(TAGGED)
    turns = json.loads(json.dumps(TURNS))
    text = formatter.format_conversation(turns)
    assert text == pickle.loads(pickle.dumps(formatter)).format_conversation(turns)
    assert turns == TURNS


def test_plain_turns_are_labelled() -> None:
    """The system's text stands first, and the assistant is next."""
    plain = PlainFormatter()
    text = plain.format_conversation([TURNS[0], {"role": "user", "content": "Hi"}])
    assert text == "Be <kind> & 'brief'.\n\nUser: Hi\n\nAssistant:"
    parts = [{"type": "text", "text": "Hi"}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Well,"}]
    assert plain.format_conversation(turns) == "User: Hi\n\nAssistant: Well,"


def test_plain_turns_hold_no_images() -> None:
    """A base model's prompt is text."""
    with pytest.raises(PromptError, match="not text"):
        PlainFormatter().format_conversation([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])


@pytest.mark.parametrize("source", [TAGGED, COUNTED])
def test_transformers_itself_agrees(source: str) -> None:
    """Where it is installed."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    expected = tokenizer.apply_chat_template(
        TURNS, chat_template=source, tokenize=False, add_generation_prompt=True, mode="x"
    )
    variables = {"bos_token": "<s>", "eos_token": "</s>", "mode": "x"}
    assert expected == HFChatTemplateFormatter(source, variables=variables).format_conversation(TURNS)


def test_a_formatter_tells_its_template_apart_from_others() -> None:
    """So that answers to another template are not taken for its own."""
    same, same_too = (HFChatTemplateFormatter("{{ messages }}") for _ in range(2))
    assert same.describe() == same_too.describe()
    assert same.describe() != HFChatTemplateFormatter("{{ messages[0] }}").describe()
    assert same.describe() != HFChatTemplateFormatter("{{ messages }}", variables={"a": 1}).describe()
