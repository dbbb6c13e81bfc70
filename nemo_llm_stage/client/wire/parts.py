"""
Text out of whatever servers put it into: a text, a list of parts, a part.

Knows the shapes of chat content and of thinking; a shape that it does not know holds no text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

_MAX_DEPTH = 4
"""Mistral has the deepest known: a content part, its ``thinking``, a part of that, its ``text``."""

_TEXT_KEYS = ("text", "thinking", "summary", "content", "reasoning")
_THINKING_TYPES = frozenset({"thinking", "reasoning", "reasoning_content", "thought"})
_NOT_FOR_READING = ("redacted_thinking", "reasoning.encrypted")  # a tuple: a server may send a type that has no hash

THINKING_KEYS = ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks")
"""Where servers put the thinking, in a message or a delta: vLLM and DeepSeek; OpenRouter; Ollama; gateways."""

_THINKING_KEYS = frozenset(THINKING_KEYS)


class Content(NamedTuple):
    """
    What a message's ``content`` holds.

    Attributes:
        text: The answer; None where there is none.
        thinking: Likewise.
        refusal: Likewise.
    """

    text: str | None = None
    thinking: str | None = None
    refusal: str | None = None


def text_in(value: Any) -> str | None:
    """Return all text in `value`: a text, a part that holds one, or a list of these; None where there is none."""
    if isinstance(value, str):
        return value
    texts = list(_texts(value, _MAX_DEPTH))
    return "".join(texts) if texts else None


def _texts(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, list):
        for part in value:
            yield from _texts(part, depth - 1)
    elif depth and isinstance(value, dict) and value.get("type") not in _NOT_FOR_READING:
        for key in _TEXT_KEYS:
            if isinstance(value.get(key), str | list):
                yield from _texts(value[key], depth - 1)
                return


def content_of(value: Any) -> Content:
    """Return what `value`, a message's ``content``, holds: a text, one part, or a list of parts."""
    if isinstance(value, str):
        return Content(value)
    texts: dict[str, list[str]] = {}
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, str):
            texts.setdefault("text", []).append(part)
        elif isinstance(part, dict):
            kind, content = _part(part)
            if content is not None:
                texts.setdefault(kind, []).append(content)
    return Content(**{kind: "".join(pieces) for kind, pieces in texts.items()}) if texts else _NOTHING


def _part(part: dict[str, Any]) -> tuple[str, str | None]:
    """The kind of one part, as a field of `Content`, and its text."""
    kind = part.get("type")
    if kind == "refusal":
        return "refusal", text_in(part.get("refusal"))
    if (isinstance(kind, str) and kind in _THINKING_TYPES) or "thinking" in part:
        return "thinking", text_in(part)
    text = part.get("text")
    return "text", text if isinstance(text, str) else None


_NOTHING = Content()


def thinking_in(message: dict[str, Any]) -> str | None:
    """Return the thinking that stands beside the content of `message`; the first key that holds text counts."""
    if not _THINKING_KEYS.isdisjoint(message):
        for key in THINKING_KEYS:
            text = text_in(message.get(key))
            if text:
                return text
    return None
