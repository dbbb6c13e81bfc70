"""
What a server says when it says no: status and body become the error they stand for.

Reads the error bodies of OpenAI, vLLM, SGLang, llama.cpp, TGI, FastAPI and plain gateways. The words go to the user,
folded and short; headers never do. Pure: knows nothing of connections.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson

from nemo_llm_stage.client.errors.context_limit import context_limit_of
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

MAX_MESSAGE_CHARS = 500
"""Longest text of a server that goes into an error."""

_RETRIED_4XX = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY}
_TOO_LONG_STATUSES = {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}
_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}

_TOO_LONG_WORDS = re.compile(
    r"maximum (model |context )+length"  # OpenAI, vLLM, SGLang, Mistral
    r"|longer than the (model|maximum)"  # SGLang, vLLM
    r"|exceeds? .{0,40}(context|max_seq_len|maximum (input )?(length|number of tokens))"  # llama.cpp, TRT-LLM, Gemini
    r"|max_model_len|max_new_tokens. must be"  # vLLM, TGI
    r"|(prompt|input) is too (long|large)",  # Anthropic, llama.cpp
    re.IGNORECASE,
)
_TAGS = re.compile(r"(?s)<(script|style)\b.*?</\1>|<[^>]*>")
_TITLE = re.compile(r"(?is)<title[^>]*>(.*?)</title>")


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    An error body, read.

    Attributes:
        text: The server's words, on one line and short; empty where it said nothing.
        code: The protocol's ``code`` or else ``type``, as text.
        param: The request parameter that the server blames.
    """

    text: str
    code: str | None = None
    param: str | None = None


def read_refusal(body: bytes, secrets: Iterable[str] = ()) -> Refusal:
    """Return what `body` says; JSON in any of the usual shapes, HTML or plain text. Never raises."""
    try:
        value = orjson.loads(body)
    except ValueError:
        return Refusal(shorten(hide(_plain_text(body.decode("utf-8", "replace")), secrets)))
    if isinstance(value, list) and value:
        value = value[0]
    inner = value.get("error") if isinstance(value, dict) else None
    details = inner if isinstance(inner, dict) else value if isinstance(value, dict) else {}
    codes = [code for code in (details.get("code"), details.get("type")) if isinstance(code, str)]
    param = details.get("param")
    return Refusal(
        text=shorten(hide(_message_in(value), secrets)),
        code=next((code for code in codes if code in _TOO_LONG_CODES), codes[0] if codes else None),
        param=param if isinstance(param, str) else None,
    )


def error_of_refusal(
    status: int,
    body: bytes,
    *,
    url: str | None = None,
    model: str | None = None,
    retry_after_s: float | None = None,
    secrets: Iterable[str] = (),
) -> RequestError:
    """
    Return the error that an answer with this status stands for.

    Args:
        status: 300 to 599.
        body: As it came.
        url: What was asked, without credentials; named where the address may be the mistake.
        model: The model asked for; named where the server does not know it.
        retry_after_s: Seconds the server asked to wait.
        secrets: Texts that must not show, should the server repeat them.
    """
    refusal = read_refusal(body, secrets)
    message = _sentence(f"HTTP {status}: {refusal.text or _phrase(status)}")
    if status in _TOO_LONG_STATUSES and _is_too_long(refusal):
        limit = context_limit_of(body.decode("utf-8", "replace"))
        return ContextOverflowError(
            message, status=status, max_context_tokens=limit.max_context_tokens, prompt_tokens=limit.prompt_tokens
        )
    if status == HTTPStatus.BAD_REQUEST and refusal.code == "content_filter":
        return ContentFilterError(message, status=status)
    if status == HTTPStatus.PAYMENT_REQUIRED or refusal.code == "insufficient_quota":
        return FatalError(f"{message} The account behind the key is out of credit.", status=status)
    if status == HTTPStatus.NOT_FOUND:
        return NotFoundError(_not_found(message, refusal, url, model), status=status)
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        where = f" of {url}" if url else ""
        return AuthenticationError(f"{message} Check the API key{where} and what it may use.", status=status)
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
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _RETRIED_4XX:
        return ServerError(message, status=status, retry_after_s=retry_after_s)
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return AuthenticationError(message, status=status)
    if status == HTTPStatus.NOT_FOUND:
        return NotFoundError(message, status=status)
    return BadRequestError(message, status=status)


def shorten(text: str, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """Return `text` on one line, cut at `max_chars`."""
    folded = " ".join(text.split())
    return folded if len(folded) <= max_chars else folded[: max_chars - 1] + "…"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def _is_too_long(refusal: Refusal) -> bool:
    if refusal.code in _TOO_LONG_CODES or refusal.param == "input_tokens":
        return True
    return _TOO_LONG_WORDS.search(refusal.text) is not None


def _not_found(message: str, refusal: Refusal, url: str | None, model: str | None) -> str:
    is_about_model = refusal.param == "model" or refusal.code == "model_not_found" or "model" in refusal.text.lower()
    if model is not None and is_about_model:
        return message if model in message else f"{message} The model asked for is {model!r}."
    if url is None:
        return message
    return f"{message} Asked was {url}; is base_url right? It mostly ends in /v1."


def _phrase(status: int) -> str:
    try:
        return f"{HTTPStatus(status).phrase}; the server said no more"
    except ValueError:
        return "the server said no more"


def _message_in(value: Any) -> str:
    """The words in a JSON error body, whichever key they are under."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "; ".join(text for text in map(_message_in, value[:3]) if text)
    if not isinstance(value, dict):
        return ""
    if isinstance(value.get("msg"), str) and isinstance(value.get("loc"), list):  # FastAPI's list of mistakes
        return f"{'.'.join(map(str, value['loc']))}: {value['msg']}"
    for key in ("message", "error", "detail", "msg", "errors", "error_message"):
        text = _message_in(value.get(key))
        if text:
            return text
    return ""


def _plain_text(text: str) -> str:
    if "<" not in text or not re.search(r"(?i)<(!doctype|html|head|body|title)", text):
        return text
    title = _TITLE.search(text)
    return title.group(1) if title and title.group(1).strip() else _TAGS.sub(" ", text)
