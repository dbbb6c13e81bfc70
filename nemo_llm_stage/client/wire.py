"""
The OpenAI protocol: a request as bytes, an answer as a Completion, and what counts as an answer.

The wire's own words (``prompt_tokens``, ``choices``) live here and nowhere else. Pure: knows nothing of connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import orjson

from nemo_llm_stage.client.errors.refusal import error_of_refusal, read_refusal, shorten
from nemo_llm_stage.client.llm_client import ConversationFormatter, GenerationConfig
from nemo_llm_stage.core import Completion, Message, Usage
from nemo_llm_stage.errors import (
    ConfigError,
    ContentFilterError,
    InvalidResponseError,
    ParseError,
    PromptError,
    TruncatedError,
)

CHAT_PATH = "chat/completions"
TEXT_PATH = "completions"

_PARAMETERS = ("max_tokens", "n", "seed", "stop", "temperature", "top_k", "top_p")

_FINISHED = frozenset(
    (
        *("stop", "length", "tool_calls", "function_call"),  # the OpenAI protocol
        *("eos_token", "stop_sequence", "eos", "end_turn", "max_tokens", "repetition"),  # TGI, gateways, vLLM
    )
)
"""Finish reasons of an answer that came to its own end; any other (abort, error …) says that it was broken off."""

_LOOSE = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


class WireRequest(NamedTuple):
    """
    One request, ready to be sent to any endpoint.

    Attributes:
        path: Below the base URL, with the query where there is one.
        body: JSON.
        headers: Beside the client's own; None for none.
        timeout_s: Total; None for the client's own.
        is_stream: The answer will come as server-sent events.
    """

    path: str
    body: bytes
    headers: dict[str, str] | None
    timeout_s: float | None
    is_stream: bool


def encode_request(
    messages: Iterable[Message],
    model: str,
    config: GenerationConfig,
    formatter: ConversationFormatter | None = None,
) -> WireRequest:
    """
    Return the request for `messages`: a chat, or with a `formatter` its text to be continued.

    Parameters that are None are left out. ``extra_kwargs`` overrides the others; its ``extra_body``, ``extra_headers``,
    ``extra_query`` and ``timeout`` mean what they mean to the openai SDK. ``stream_options: false`` or null leaves
    ``stream_options`` out of a streamed request, for servers that refuse it.

    Raises:
        ConfigError: ``extra_headers``, ``extra_body``, ``extra_query`` or ``timeout`` is of the wrong type.
        PromptError: The request cannot be written as JSON, e.g. half a surrogate pair in a text.
    """
    body: dict[str, Any] = {"model": model}
    if formatter is None:
        path, body["messages"] = CHAT_PATH, messages
    else:
        path, body["prompt"] = TEXT_PATH, formatter.format_conversation(list(messages))
    for name in _PARAMETERS:
        value = getattr(config, name)
        if value is not None:
            body[name] = value
    if config.stream:
        body["stream"] = True
    headers, timeout_s, has_stream_options = None, None, True
    if config.extra_kwargs:
        extra = dict(config.extra_kwargs)
        headers, timeout_s = _mapping(extra, "extra_headers"), _seconds(extra)
        query, extra_body = _mapping(extra, "extra_query"), _mapping(extra, "extra_body")
        has_stream_options = "stream_options" not in extra or bool(extra["stream_options"])
        if not has_stream_options:
            del extra["stream_options"]
        body = {name: value for name, value in {**body, **extra}.items() if value is not None} | (extra_body or {})
        path = f"{path}?{urlencode(query)}" if query else path
    is_stream = bool(body.get("stream"))
    if is_stream and has_stream_options:
        body.setdefault("stream_options", {"include_usage": True})
    return WireRequest(path, _dumps(body), headers, timeout_s, is_stream)


def _dumps(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:
        pass
    try:
        return orjson.dumps(body, option=_LOOSE)  # slower, and rarely needed: token ids as keys, numpy values
    except TypeError as error:
        raise PromptError(f"The request cannot be written as JSON: {error}.") from None


def _mapping(extra: dict[str, Any], name: str) -> dict[str, Any] | None:
    value = extra.pop(name, None)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} in extra_kwargs must be a dict, not {type(value).__name__}.")
    if name == "extra_headers":
        return {str(key): str(text) for key, text in value.items()}
    return dict(value)


def _seconds(extra: dict[str, Any]) -> float | None:
    value = extra.pop("timeout", None)
    if value is None or (isinstance(value, int | float) and value > 0):
        return value
    raise ConfigError(f"timeout in extra_kwargs must be seconds above 0, not {value!r}.")


def decode_answer(body: bytes) -> dict[str, Any]:
    """
    Return the JSON object in the body of an answer with status 200.

    Raises:
        InvalidResponseError: It is not one.
    """
    try:
        answer = orjson.loads(body)
    except ValueError:
        said = read_refusal(body).text
        raise InvalidResponseError(f"The answer is not JSON: {shorten(said, 120)!r}.") from None
    if not isinstance(answer, dict):
        raise InvalidResponseError(f"The answer is not a JSON object: {shorten(str(answer), 120)!r}.")
    return answer


def completion_of_answer(
    answer: dict[str, Any], *, endpoint: str | None = None, latency_s: float | None = None
) -> Completion:
    """
    Return the Completion that `answer` holds. HTTP's success is not the model's: each choice must be an answer.

    Raises:
        InvalidResponseError: No choices, no text, or broken off by the server.
        ContentFilterError: The server filtered a choice, or the model refused.
        TruncatedError: ``max_tokens`` went into reasoning; there is no text.
        ParseError: The model called a tool instead of answering.
        RequestError: The server put an error under status 200.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise _error_under_200(answer)
    texts, reasons, reasoning, logprobs = [], [], [], []
    for choice in choices:
        if not isinstance(choice, dict):
            raise InvalidResponseError(f"A choice of the answer is not an object: {shorten(str(choice), 120)!r}.")
        message = choice.get("message")
        if not isinstance(message, dict):
            message = choice
        texts.append(_text_of(choice, message))
        reasons.append(choice.get("finish_reason"))
        reasoning.append(message.get("reasoning_content") or message.get("reasoning") or None)
        logprobs.append(choice.get("logprobs"))
    return Completion(
        texts=tuple(texts),
        finish_reasons=tuple(reasons),
        reasoning=tuple(reasoning),
        usage=_usage_of(answer),
        model=answer.get("model"),
        endpoint=endpoint,
        latency_s=latency_s,
        logprobs=tuple(logprobs) if any(logprobs) else (),
    )


def _text_of(choice: dict[str, Any], message: dict[str, Any]) -> str:
    """The text of one choice, under chat's ``message.content`` or completions' ``text``."""
    reason = choice.get("finish_reason")
    content = message.get("content")
    if content is None:
        content = message.get("text")
    elif isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    if reason == "content_filter" or (not content and message.get("refusal")):
        raise ContentFilterError(shorten(message.get("refusal") or "The server filtered the answer."))
    if reason is not None and reason not in _FINISHED:
        raise InvalidResponseError(f"The server broke the answer off: finish_reason {reason!r}.")
    if content:
        return str(content)
    if message.get("tool_calls") or message.get("function_call"):
        raise ParseError("The model called a tool instead of answering with a text; leave tools out of the request.")
    has_reasoning = bool(message.get("reasoning_content") or message.get("reasoning"))
    if reason == "length" and (content is None or has_reasoning):
        spent = " in reasoning" if has_reasoning else ""
        raise TruncatedError(f"All of max_tokens was spent{spent} before the first word of the answer; allow more.")
    if content is None or reason is None:
        raise InvalidResponseError(f"The answer holds no text (finish_reason {reason!r}).")
    return str(content)


def _usage_of(answer: dict[str, Any]) -> Usage | None:
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    if cached is None and isinstance(answer.get("timings"), dict):
        cached = answer["timings"].get("cache_n")  # llama.cpp
    return Usage(usage.get("prompt_tokens"), usage.get("completion_tokens"), cached)


def _error_under_200(answer: dict[str, Any]) -> Exception:
    """The error of an answer without choices: some gateways, and every stream, report errors under status 200."""
    if not answer.get("error") and answer.get("object") != "error":
        return InvalidResponseError(f"The answer has no choices: {shorten(str(answer), 120)!r}.")
    details = answer.get("error")
    code = (details if isinstance(details, dict) else answer).get("code")
    body = orjson.dumps(answer)
    if isinstance(code, int) and 400 <= code <= 599:
        return error_of_refusal(code, body)
    return InvalidResponseError(f"The server reported an error under status 200: {read_refusal(body).text}")
