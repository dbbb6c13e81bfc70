"""
A server's refusal: status and body become one of our errors.

Reads the error bodies of OpenAI, vLLM, SGLang, llama.cpp, TGI, FastAPI and plain gateways. The words go to the user,
folded and short; headers never do. Whatever the body holds, the time taken is linear and small: it is cut to a few kB
before any pattern looks at it, and nesting is followed only so deep. Pure: knows nothing of connections.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson

from nemo_llm_stage.client.errors.context_limit import ContextLimit, context_limit_of
from nemo_llm_stage.client.errors.words import cut, message_in, plain_text, shorten
from nemo_llm_stage.client.secret import hide
from nemo_llm_stage.errors import (
    AuthenticationError,
    BadRequestError,
    ContentFilterError,
    ContextOverflowError,
    FatalError,
    NotFoundError,
    RateLimitError,
    RequestError,
    ServerError,
)

_MAX_JSON_BYTES = 1 << 17
"""A longer body is not parsed."""

_TRANSIENT_4XX = frozenset(
    (
        *(408, 409, 425),  # timeout, conflict, too early
        *(420, 424, 498),  # slow down; the model behind a gateway failed; Groq's flex tier is out of capacity
    )
)
_TRANSIENT_CODES = frozenset({"json_validate_failed", "tool_use_failed"})
"""Groq's status 400 where the model, not the request, went wrong: the next answer may be valid."""

_TOO_LONG_STATUSES = frozenset({400, 413, 422})
_TOO_LONG_CODES = frozenset(
    {
        "context_length_exceeded",  # OpenAI, Groq
        "exceed_context_size_error",  # llama.cpp
        "string_above_max_length",  # OpenAI
        "model_context_window_exceeded",  # Z.ai
        "TOO_MANY_TOKENS",  # Cohere
    }
)

_TOO_LONG_WORDS = re.compile(
    r"maximum (?:model |context |prompt )+length|max context length"  # OpenAI, vLLM, SGLang, Mistral, xAI; Ollama
    r"|longer than the (?:model|maximum)"  # SGLang, vLLM
    r"|exceeds? .{0,40}(?:context|max_seq_len|max_num_tokens|maximum (?:input |sequence )?(?:length|number of tokens)"
    r"|configured limit|maximum allowed)"  # llama.cpp, TensorRT-LLM, Gemini, Azure, NIM, Ollama
    r"|context length is|max_seq_len|max_model_len|max_new_tokens. must be"  # NIM, TensorRT-LLM, vLLM, TGI
    r"|(?:prompt|input) (?:is )?too (?:long|large)"  # Anthropic, llama.cpp, Ollama, Bedrock
    r"|when context the overflows|greater than the context length"  # LM Studio
    r"|too many tokens"  # Cohere
    r"|prompt token count|max_tokens \([0-9]{1,9}\) cannot exceed"  # Databricks, GitHub Models
    r"|reduce the length of"  # OpenAI, Groq
    r"|exceeded model token limit",  # Moonshot
    re.IGNORECASE,
)
_MORE_THAN_ALLOWED = re.compile(r"Request too large.{0,300}Limit ([0-9]{1,12}), Requested ([0-9]{1,12})", re.DOTALL)
"""One request larger than the tokens per minute of the account (OpenAI 429, Groq 413): waiting does not help."""

_UNKNOWN = ContextLimit()


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    An error body, read.

    Attributes:
        text: The server's words, on one line, at most `MAX_MESSAGE_CHARS`; empty where it gave none.
        code: The protocol's ``code`` or else ``type``, as text.
        param: The request parameter that the server blames.
        words: The server's words, at most `MAX_WORDS_CHARS`; what patterns are matched against.
        limits: llama.cpp's ``n_ctx`` and ``n_prompt_tokens``.
    """

    text: str
    code: str | None = None
    param: str | None = None
    words: str = ""
    limits: ContextLimit = _UNKNOWN


def read_refusal(body: bytes, secrets: Iterable[str] = ()) -> Refusal:
    """Return what `body` says; JSON in any of the usual shapes, HTML or plain text. Never raises."""
    value = _parsed(body)
    if value is None:
        words = cut(hide(body[:_MAX_JSON_BYTES].decode("utf-8", "replace"), secrets))
        return Refusal(shorten(plain_text(words)), words=words)
    if isinstance(value, list) and value:
        value = value[0]
    inner = value.get("error") if isinstance(value, dict) else None
    details = inner if isinstance(inner, dict) else value if isinstance(value, dict) else {}
    codes = [code for code in (details.get("code"), details.get("type")) if isinstance(code, str)]
    param = details.get("param")
    words = cut(hide(message_in(value), secrets))
    return Refusal(
        text=shorten(words),
        code=next((code for code in codes if code in _TOO_LONG_CODES), codes[0] if codes else None),
        param=param if isinstance(param, str) else None,
        words=words,
        limits=ContextLimit(_tokens(details.get("n_ctx")), _tokens(details.get("n_prompt_tokens"))),
    )


def error_of_refusal(
    status: int,
    body: bytes,
    *,
    url: str | None = None,
    model: str | None = None,
    retry_after_s: float | None = None,
    secrets: Iterable[str] = (),
    has_key: bool | None = None,
) -> RequestError:
    """
    Return the error that an answer with this status stands for.

    Args:
        status: 300 to 599.
        body: As it came.
        url: Where the request went, without credentials; named where the address may be the mistake.
        model: The request's model; named where the server does not know it.
        retry_after_s: Seconds the server asked to wait.
        secrets: Texts that the message must not show, should the server repeat them.
        has_key: Whether the request had a key; None where that is not known.
    """
    refusal = read_refusal(body, secrets)
    message = _sentence(f"HTTP {status}: {refusal.text or _phrase(status)}")
    if (status in _TOO_LONG_STATUSES and _is_too_long(refusal)) or _is_more_than_allowed(refusal):
        stated, known = context_limit_of(refusal.words), refusal.limits
        return ContextOverflowError(
            message,
            status=status,
            max_context_tokens=known.max_context_tokens or stated.max_context_tokens,
            prompt_tokens=known.prompt_tokens or stated.prompt_tokens,
        )
    if status == HTTPStatus.BAD_REQUEST and refusal.code == "content_filter":
        return ContentFilterError(message, status=status)
    if status == HTTPStatus.BAD_REQUEST and refusal.code in _TRANSIENT_CODES:
        return ServerError(message, status=status, retry_after_s=retry_after_s)
    if status == HTTPStatus.PAYMENT_REQUIRED or refusal.code == "insufficient_quota":
        return FatalError(f"{message} The account behind the key is out of credit.", status=status)
    if status == HTTPStatus.NOT_FOUND:
        return NotFoundError(_not_found(message, refusal, url, model), status=status)
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return AuthenticationError(f"{message} {_advice_on_key(url, has_key)}", status=status)
    return error_from_status(status, message, retry_after_s=retry_after_s)


def error_from_status(status: int, message: str, *, retry_after_s: float | None = None) -> RequestError:
    """
    Return the error that an HTTP status other than success stands for, going by the status alone.

    Args:
        status: 400 to 599; 3xx counts as a refused request, since redirects are not followed.
        message: What to tell the user, the server's own words included.
        retry_after_s: Seconds the server asked to wait.
    """
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return RateLimitError(message, status=status, retry_after_s=retry_after_s)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRANSIENT_4XX:
        return ServerError(message, status=status, retry_after_s=retry_after_s)
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return AuthenticationError(message, status=status)
    if status == HTTPStatus.NOT_FOUND:
        return NotFoundError(message, status=status)
    return BadRequestError(message, status=status)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def _is_too_long(refusal: Refusal) -> bool:
    if refusal.code in _TOO_LONG_CODES or refusal.param == "input_tokens":
        return True
    return _TOO_LONG_WORDS.search(refusal.words) is not None


def _is_more_than_allowed(refusal: Refusal) -> bool:
    match = _MORE_THAN_ALLOWED.search(refusal.words)
    return match is not None and int(match[2]) > int(match[1])


def _not_found(message: str, refusal: Refusal, url: str | None, model: str | None) -> str:
    is_about_model = refusal.param == "model" or refusal.code == "model_not_found" or "model" in refusal.text.lower()
    if model is not None and is_about_model:
        return message if model in message else f"{message} The model asked for is {model!r}."
    if url is None:
        return message
    return f"{message} Asked was {url}; is base_url right? It mostly ends in /v1."


def _advice_on_key(url: str | None, has_key: bool | None) -> str:
    if has_key is False:
        return (
            f"No API key was sent{f' to {url}' if url else ''}. Set api_key_env (--api-key-env) to the name of the "
            "environment variable that holds it, or api_key_file."
        )
    sent = " It was sent: correct the value that api_key_env or api_key_file names." if has_key else ""
    return f"Check the API key{f' of {url}' if url else ''} and what it may use.{sent}"


def _phrase(status: int) -> str:
    try:
        return f"{HTTPStatus(status).phrase}; the server said no more"
    except ValueError:
        return "the server said no more"


def _parsed(body: bytes) -> Any:
    """Return the JSON value in `body`; None where it holds none, or is too long to look."""
    if len(body) > _MAX_JSON_BYTES:
        return None
    try:
        return orjson.loads(body) if body.strip() != b"null" else {}
    except ValueError:
        return None


def _tokens(value: Any) -> int | None:
    is_number = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**12
    return value if is_number else None
