"""
The openai SDK's responses as the protocol writes them, and its classes without importing it.

Responses are read by their attributes: a provider's subclass or a test's double has those, and not always a way to be
dumped. What the values are worth is decided by `wire`. Imports nothing of the SDK before it is called.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nemo_llm_stage.client.wire import StreamedAnswer
from nemo_llm_stage.errors import InvalidResponseError, RequestTimeoutError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

_ANSWER_FIELDS = ("model", "object", "error", "message", "code", "timings")
_USAGE_FIELDS = ("prompt_tokens", "completion_tokens")
_CHOICE_FIELDS = ("index", "finish_reason", "text")
_MESSAGE_FIELDS = (
    *("content", "refusal", "tool_calls", "function_call"),
    *("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks"),
)


class SDKClass:
    """
    A class of the SDK that is imported when it is called.

    Args:
        name: In the module ``openai``.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, **kwargs: Any) -> Any:
        """Return an instance of the class."""
        return getattr(importlib.import_module("openai"), self._name)(**kwargs)

    def __repr__(self) -> str:
        return f"<openai.{self._name}, imported when it is called>"


def answer_of_response(response: Any) -> dict[str, Any]:
    """
    Return a response as the protocol writes it.

    Raises:
        InvalidResponseError: It has no choices and says nothing of an error: the SDK hands on any text as it is.
    """
    answer = answer_of_chunk(response)
    if "choices" not in answer and "error" not in answer and answer.get("object") != "error":
        raise InvalidResponseError(f"The answer is not a chat completion: {response!r:.120}.")
    return answer


def answer_of_chunk(response: Any) -> dict[str, Any]:
    """Return a response, or a chunk of a streamed one, as the protocol writes it."""
    answer = _fields(response, _ANSWER_FIELDS)
    if not isinstance(answer.get("error"), dict | str):  # a double has every attribute
        answer.pop("error", None)
    choices = _get(response, "choices")
    if isinstance(choices, list | tuple):
        answer["choices"] = [_choice(choice) for choice in choices]
    usage = _get(response, "usage")
    if usage is not None:
        answer["usage"] = _fields(usage, _USAGE_FIELDS)
        cached = _get(_get(usage, "prompt_tokens_details"), "cached_tokens")
        answer["usage"]["prompt_tokens_details"] = {"cached_tokens": cached}
    return answer


def _choice(choice: Any) -> dict[str, Any]:
    fields = _fields(choice, _CHOICE_FIELDS)
    for name in ("message", "delta"):
        message = _get(choice, name)
        if message is not None:
            fields[name] = _fields(message, _MESSAGE_FIELDS)
    logprobs = _get(choice, "logprobs")
    if logprobs is not None:
        dump = getattr(logprobs, "model_dump", None)
        fields["logprobs"] = logprobs if dump is None else dump(warnings=False)
    return fields


def _fields(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    fields = {name: _get(value, name) for name in names}
    return {name: field for name, field in fields.items() if field is not None}


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def fetch(client: OpenAI, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to one request, streamed where `kwargs` say so."""
    response = client.chat.completions.create(**kwargs)
    if not kwargs["stream"]:
        return answer_of_response(response)
    stream = StreamedAnswer()
    with response:
        for chunk in response:
            stream.take(answer_of_chunk(chunk))
    return stream.whole()


async def fetch_async(client: AsyncOpenAI, kwargs: dict[str, Any], limit_s: Any) -> dict[str, Any]:
    """
    Return the answer to one request, streamed where `kwargs` say so.

    Args:
        client: Of the running loop.
        kwargs: For ``create``.
        limit_s: Seconds for the whole answer: the SDK's own limit starts anew with every byte that drips in. Anything
            but a number is no limit.

    Raises:
        RequestTimeoutError: There was no whole answer within `limit_s`.
    """
    timeout_s = limit_s if isinstance(limit_s, int | float) else None
    try:
        async with asyncio.timeout(timeout_s):
            response = await client.chat.completions.create(**kwargs)
            if not kwargs["stream"]:
                return answer_of_response(response)
            stream = StreamedAnswer()
            async with response:
                async for chunk in response:
                    stream.take(answer_of_chunk(chunk))
            return stream.whole()
    except TimeoutError:
        if timeout_s is None:
            raise
        raise RequestTimeoutError(f"No whole answer within {timeout_s:g} s.") from None
