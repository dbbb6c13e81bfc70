"""
Chat turns that a column already holds become messages of the protocol.

Takes the field's form for chat data, ``list<struct<role, content>>``, or the same as JSON text. The turns are data:
nothing in them is a template. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from nemo_llm_stage.core import Message
from nemo_llm_stage.errors import PromptError
from nemo_llm_stage.prompt.nulls import is_null

MESSAGE_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
"""Fields of a turn that are sent; others are the dataset's own. Source: OpenAI chat completions; vLLM (the last)."""


def messages_of_column(column: str, value: Any, *, allow_remote_urls: bool) -> list[Message]:
    """
    Return the messages that `value` holds, oldest first.

    Args:
        column: Its name, for messages to the user.
        value: Not null. Null fields, as Arrow fills structs up with, are left out.
        allow_remote_urls: Whether content parts may name URLs that the server would fetch.

    Raises:
        PromptError: It is not a conversation, or names a URL that is not allowed.
    """
    if isinstance(value, str | bytes):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise PromptError(f"column {column!r} is a text but not JSON: {error}") from None
    turns = _without_nulls(value)
    if not isinstance(turns, list):
        raise PromptError(f"column {column!r} holds {type(value).__name__}, not a list of messages.")
    return [_message(column, turn, allow_remote_urls=allow_remote_urls) for turn in turns]


def _message(column: str, turn: Any, *, allow_remote_urls: bool) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise PromptError(f"column {column!r} holds a turn without a role: {turn!r:.200}")
    content = turn.get("content")
    if content is None and "tool_calls" not in turn:
        raise PromptError(f"column {column!r} holds a {turn['role']} turn without content.")
    if isinstance(content, list):
        for part in content:
            _check_part(column, part, allow_remote_urls=allow_remote_urls)
    elif content is not None and not isinstance(content, str):
        raise PromptError(f"column {column!r} holds content that is no text: {content!r:.200}")
    return {field: turn[field] for field in MESSAGE_FIELDS if field in turn}


def _check_part(column: str, part: Any, *, allow_remote_urls: bool) -> None:
    if not isinstance(part, dict) or "type" not in part:
        raise PromptError(f"column {column!r} holds a content part without a type: {part!r:.200}")
    for name, value in part.items():
        url = value.get("url") if isinstance(value, dict) else value
        if name.endswith("url") and isinstance(url, str) and not url.startswith("data:"):
            check_url_allowed(column, url, allow_remote_urls=allow_remote_urls)


def check_url_allowed(column: str, url: str, *, allow_remote_urls: bool) -> None:
    """
    Check that the server may be told to fetch `url`: only over HTTP, and only where the settings say so.

    Raises:
        PromptError: It may not.
    """
    if not url.startswith(("http://", "https://")):
        raise PromptError(f"column {column!r} names {url!r:.200}, which is neither a data: nor an http(s) URL.")
    if not allow_remote_urls:
        raise PromptError(
            f"column {column!r} names {url!r:.200}; the server would fetch it. Set allow_remote_urls to allow that."
        )


def _without_nulls(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if not is_null(item)}
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value if not is_null(item)]
    return value
