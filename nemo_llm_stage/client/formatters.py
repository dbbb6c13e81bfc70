"""
Conversations become the one text that a base model continues, for ``/v1/completions``.

Knows chat templates as Hugging Face tokenizers carry them, and a plain form. Knows nothing of requests.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from nemo_llm_stage.client.llm_client import ConversationFormatter
from nemo_llm_stage.errors import ConfigError, PromptError

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class HFChatTemplateFormatter(ConversationFormatter):
    """
    A Hugging Face chat template: gives the text that ``transformers``' ``apply_chat_template`` gives.

    The template runs in a sandbox and cannot change its input or reach Python's insides. Its text often starts with
    the model's first token, and servers add one too: on vLLM set ``add_special_tokens: false`` in ``extra_kwargs``.

    Args:
        template: The template's text, or a path: of a ``tokenizer_config.json``, of a model's folder holding one, or of
            a ``.jinja`` file. Text has braces; a path has none.
        add_generation_prompt: Whether the text ends with the start of the assistant's turn.
        variables: What else the template reads, e.g. ``{"enable_thinking": False}``; overrides the special tokens.

    Raises:
        ConfigError: The path cannot be read, holds no template, or the template is wrong.
    """

    def __init__(
        self,
        template: str | os.PathLike[str],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        is_text = isinstance(template, str) and ("{{" in template or "{%" in template)
        self._source, tokens = (str(template), {}) if is_text else _read(Path(template))
        self._add_generation_prompt = add_generation_prompt
        self._variables = {**tokens, **(variables or {})}
        try:
            _ = self._template
        except TemplateSyntaxError as error:
            raise ConfigError(f"the chat template, line {error.lineno}: {error.message}") from None

    def format_conversation(self, conv: list[dict[str, Any]]) -> str:
        """
        Return the text for `conv`; does not modify it.

        Raises:
            PromptError: The template refuses the conversation, e.g. because roles do not alternate.
        """
        messages = [_normalise(message) for message in conv]
        settings = {"tools": None, "documents": None, "add_generation_prompt": self._add_generation_prompt}
        try:
            return self._template.render({"messages": messages} | settings | self._variables)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise PromptError(f"the chat template refuses this conversation: {error}") from error

    def describe(self) -> dict[str, Any]:
        """Return what the text depends on beside the conversation; equal for equal formatters."""
        digest = hashlib.sha256(self._source.encode()).hexdigest()
        return {
            "chat_template_sha256": digest,
            "add_generation_prompt": self._add_generation_prompt,
            "variables": self._variables,
        }

    @functools.cached_property
    def _template(self) -> Template:
        return _environment().from_string(self._source)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what was compiled in this process."""
        return {name: value for name, value in self.__dict__.items() if name != "_template"}


class PlainFormatter(ConversationFormatter):
    """
    ``User: …`` and ``Assistant: …`` turns with a blank line between, after the system's text.

    The text ends with ``Assistant:``, or with the last assistant's turn for the model to go on with. Set a ``stop`` of
    ``"User:"``, or the model may write the user's next turn too.
    """

    def format_conversation(self, conv: list[dict[str, Any]]) -> str:
        """
        Return the text for `conv`.

        Raises:
            PromptError: A turn is not text.
        """
        turns = [_plain_turn(message) for message in conv]
        if not conv or conv[-1]["role"] != "assistant":
            turns.append("Assistant:")
        return "\n\n".join(turns)


def _plain_turn(message: Mapping[str, Any]) -> str:
    role, content = message["role"], message.get("content")
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise PromptError(f"a {role} turn is not text, which is all that a plain prompt can hold.")
    return content if role in {"system", "developer"} else f"{role.capitalize()}: {content}"


def _normalise(message: Mapping[str, Any]) -> dict[str, Any]:
    """Leave nulls out and give the thinking every name that templates know it by, as ``transformers`` does."""
    present = {name: value for name, value in message.items() if value is not None}
    reasoning = next((present[name] for name in _REASONING_FIELDS if name in present), None)
    return present if reasoning is None else {"thinking": reasoning, **present, "reasoning_content": reasoning}


def _read(path: Path) -> tuple[str, dict[str, str]]:
    """Return the template that belongs to `path`, and the special tokens that its tokenizer names."""
    path = path / "tokenizer_config.json" if path.is_dir() else path
    config_path = path if path.suffix == ".json" else path.with_name("tokenizer_config.json")
    template_path = path.with_name("chat_template.jinja") if path.suffix == ".json" else path
    try:
        config = json.loads(config_path.read_text("utf-8")) if path.suffix == ".json" or config_path.exists() else {}
        template = template_path.read_text("utf-8") if template_path.exists() else config.get("chat_template")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the chat template at {path} cannot be read: {error}") from error
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if not isinstance(template, str):
        raise ConfigError(f"{path} holds no chat template.")
    tokens = {name: config[name] for name in _SPECIAL_TOKENS if config.get(name) is not None}
    return template, {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Return an environment with what chat templates expect. Source: transformers 5.23, chat_template_utils.py."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    del env.globals["lipsum"]
    env.globals |= {"raise_exception": _raise, "strftime_now": _now, "namespace": _SafeNamespace}
    env.filters["tojson"] = _to_json
    return env


class _GenerationTag(Extension):
    """``{% generation %}`` marks what the assistant wrote, for training; here its body counts and the mark does not."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class _SafeNamespace(Namespace):
    """A namespace that takes no name with which Python itself could be fooled about what it is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005 - local time, as models were trained with


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
