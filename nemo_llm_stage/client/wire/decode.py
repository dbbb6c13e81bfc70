"""
An answer becomes a Completion. HTTP's success is not the model's: each choice must be an answer.

A side field that is odd (usage, model, thinking, finish reason, logprobs) becomes None and costs nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from nemo_llm_stage.client.errors.refusal import error_of_refusal, read_refusal
from nemo_llm_stage.client.errors.words import shorten
from nemo_llm_stage.client.wire.finish_reason import Finish, finish_of
from nemo_llm_stage.client.wire.lenient_json import BOM, load_object, shown
from nemo_llm_stage.client.wire.parts import content_of, text_in, thinking_in
from nemo_llm_stage.client.wire.stream import MAX_CHOICES, StreamedAnswer
from nemo_llm_stage.core import Completion, Usage
from nemo_llm_stage.errors import (
    ContentFilterError,
    InvalidResponseError,
    NoAnswerError,
    ParseError,
    RequestError,
    TruncatedError,
)
from nemo_llm_stage.fields import name_or_none, object_or_none, usage_or_none
from nemo_llm_stage.text import encodable

_STREAM_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")
_NO_REASONS = frozenset({"none", "null"})


def decode_answer(body: bytes, *, is_bounded: bool = True) -> dict[str, Any]:
    """
    Return the answer in a body with status 200: a JSON object, or an event stream whatever the content type says.

    Args:
        body: As sent.
        is_bounded: Whether there is a bound on the values of an answer; see `load_json`.

    Raises:
        InvalidResponseError: It is neither, or too much to be read at once.
        ConnectionDroppedError: It is a stream that ends in the middle.
    """
    if body.startswith(b"{") or not body[:16].removeprefix(BOM).lstrip().startswith(_STREAM_STARTS):
        return load_object(body, is_bounded=is_bounded)
    stream = StreamedAnswer()
    stream.feed(body)
    return stream.whole()


def completion_of_answer(
    answer: dict[str, Any], *, endpoint: str | None = None, latency_s: float | None = None
) -> Completion:
    """
    Return the Completion that `answer` holds, its choices in the order of their ``index``.

    Where some choices are answers and others are not, the others have an empty text and their error in
    `Completion.choice_errors`.

    Raises:
        InvalidResponseError: No choices, no text, or broken off by the server.
        NoAnswerError: The model only thought.
        ContentFilterError: The server filtered the answer, or the model refused.
        TruncatedError: ``max_tokens`` went into reasoning; there is no text.
        ParseError: The model called a tool instead of answering.
        RequestError: The server put an error under status 200.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise _error_under_200(answer)
    usage, model = _usage_of(answer), name_or_none(answer.get("model"))
    if len(choices) > 1:
        if len(choices) > MAX_CHOICES:
            raise InvalidResponseError(f"The answer has more than {MAX_CHOICES} choices.")
        return _completion_of_several(_in_order(choices), usage, model, endpoint, latency_s)
    text, reason, thinking, logprobs, error = _read_choice(choices[0])
    if error is not None:
        raise error
    return Completion(
        (text,), (reason,), (thinking,), usage, model, endpoint, 1, latency_s, () if logprobs is None else (logprobs,)
    )


def _completion_of_several(
    choices: list[Any], usage: Usage | None, model: str | None, endpoint: str | None, latency_s: float | None
) -> Completion:
    read = [_Choice(*_read_choice(choice)) for choice in choices]
    errors = [choice.error for choice in read]
    error = errors[0]
    if error is not None and all(errors):
        raise error
    logprobs = tuple(choice.logprobs for choice in read)
    return Completion(
        texts=tuple(choice.text for choice in read),
        finish_reasons=tuple(choice.finish_reason for choice in read),
        reasoning=tuple(choice.reasoning for choice in read),
        usage=usage,
        model=model,
        endpoint=endpoint,
        latency_s=latency_s,
        logprobs=logprobs if any(logprobs) else (),
        choice_errors=tuple(map(_told, errors)) if any(errors) else (),
    )


def _told(error: RequestError | None) -> str | None:
    return None if error is None else f"{error.kind}: {error}"


def _in_order(choices: list[Any]) -> list[Any]:
    """By index, where each choice has one of its own; else as they came."""
    indexes: list[Any] = [choice.get("index") if isinstance(choice, dict) else None for choice in choices]
    if not all(type(index) is int for index in indexes) or len(set(indexes)) < len(indexes):
        return choices
    return [choices[place] for place in sorted(range(len(choices)), key=indexes.__getitem__)]


class _Choice(NamedTuple):
    """One choice, typed; with an error its text is empty."""

    text: str
    finish_reason: str | None
    reasoning: str | None
    logprobs: dict[str, Any] | None
    error: RequestError | None


def _read_choice(choice: Any) -> tuple[str, str | None, str | None, dict[str, Any] | None, RequestError | None]:
    """Return the fields of a `_Choice`: a plain tuple is made in a third of the time."""
    if not isinstance(choice, dict):
        no_object = InvalidResponseError(f"A choice of the answer is not an object: {shown(choice)}.")
        return "", None, None, None, no_object
    message = choice.get("message")
    if not isinstance(message, dict):
        message = choice
    content, thinking, refusal = message.get("content"), thinking_in(message), None
    logprobs = choice.get("logprobs")
    if thinking is None and type(content) is str and content.isascii() and content and logprobs is None:
        reason = choice.get("finish_reason")
        if reason == "stop" or reason == "length":  # the usual answer: nothing of it is odd
            return content, reason, None, None, None
    if content is None:
        content = message.get("text")  # where /completions has it
    if type(content) is not str:
        content, inner_thinking, refusal = content_of(content)
        thinking = thinking or inner_thinking
    reason = _reason_of(choice)
    error = _error_of(message, reason, content, thinking, refusal)
    text = "" if error is not None or content is None else encodable(content)
    return text, reason, encodable(thinking) if thinking else None, object_or_none(logprobs), error


def _reason_of(choice: dict[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    if reason == "stop":
        return "stop"
    name = name_or_none(reason)
    return None if name is None or name.lower() in _NO_REASONS else name


def _error_of(
    message: dict[str, Any], reason: str | None, content: str | None, thinking: str | None, refusal: str | None
) -> RequestError | None:
    """Why this choice is no answer; None where it is one."""
    finish = finish_of(reason)
    if finish is Finish.FILTERED or not content:
        refusal = refusal or text_in(message.get("refusal"))
        if finish is Finish.FILTERED or refusal:
            return ContentFilterError(shorten(encodable(refusal or "The server filtered the answer.")))
    if finish is Finish.BROKEN:
        return InvalidResponseError(f"The server broke the answer off: finish_reason {reason!r}.")
    if content:
        return None
    if _has_any(message, "tool_calls", "function_call"):
        return ParseError("The model called a tool instead of answering with a text; leave tools out of the request.")
    if finish is Finish.CUT and (content is None or thinking):
        spent = " in reasoning" if thinking else ""
        return TruncatedError(f"All of max_tokens was spent{spent} before the first word of the answer; allow more.")
    if thinking and finish is Finish.WHOLE:
        return NoAnswerError("The model only thought and gave no answer.")
    if content is None or finish is Finish.UNKNOWN:
        return InvalidResponseError(f"The answer holds no text (finish_reason {reason!r}).")
    return None


def _has_any(message: dict[str, Any], *keys: str) -> bool:
    return any(isinstance(message.get(key), list | dict) and bool(message[key]) for key in keys)


def _usage_of(answer: dict[str, Any]) -> Usage | None:
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    inputs, outputs = usage.get("prompt_tokens"), usage.get("completion_tokens")
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    if cached is None and isinstance(answer.get("timings"), dict):
        cached = answer["timings"].get("cache_n")  # llama.cpp
    return usage_or_none(inputs, outputs, cached)


def _error_under_200(answer: dict[str, Any]) -> RequestError:
    """The error of an answer without choices: some gateways, and every stream, report errors under status 200."""
    if not answer.get("error") and answer.get("object") != "error":
        return InvalidResponseError(f"The answer has no choices: {shown(answer)}.")
    details = answer.get("error")
    code = (details if isinstance(details, dict) else answer).get("code")
    try:
        body = orjson.dumps(answer)
    except TypeError:  # nested too deeply, or half a surrogate pair
        body = shown(answer).encode("utf-8", "replace")
    if type(code) is int and 400 <= code <= 599:
        return error_of_refusal(code, body)
    return InvalidResponseError(f"The server reported an error under status 200: {read_refusal(body).text}")
