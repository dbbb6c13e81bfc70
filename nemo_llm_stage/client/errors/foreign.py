"""
Exceptions of other libraries become our types: by type, then HTTP status, then class name, and last by words.

One table from foreign exceptions to our types. Knows nothing of transports.
"""

from __future__ import annotations

import contextlib
import re
from http import HTTPStatus

import orjson

from nemo_llm_stage.client.errors.refusal import error_from_status, error_of_refusal
from nemo_llm_stage.client.errors.retry_after import parse_retry_after_s
from nemo_llm_stage.client.errors.words import shorten
from nemo_llm_stage.errors import (
    ClientError,
    ConnectionDroppedError,
    ConnectionFailedError,
    ContentFilterError,
    FatalError,
    InvalidResponseError,
    LLMStageError,
    RateLimitError,
    RequestError,
    RequestTimeoutError,
    ServerError,
    TransientError,
    TruncatedError,
)

_WORDS = (
    (re.compile(r"\b429\b|rate[ _-]?limit|too many requests", re.IGNORECASE), RateLimitError),
    (re.compile(r"\btimed?[ -]?out\b", re.IGNORECASE), RequestTimeoutError),
    (re.compile(r"\bconnection\b|\bReadError\b|\bBrokenResourceError\b", re.IGNORECASE), ConnectionDroppedError),
    (
        re.compile(r"\b(error|status|code|http)\D{0,8}50[0234]\b|service unavailable|bad gateway", re.IGNORECASE),
        ServerError,
    ),
)
_CLASS_NAMES: dict[str, type[RequestError]] = {
    "APITimeoutError": RequestTimeoutError,
    "APIConnectionError": ConnectionDroppedError,
    "APIResponseValidationError": InvalidResponseError,
    "APIError": InvalidResponseError,  # an error event within a stream
    "JSONDecodeError": InvalidResponseError,
    "LengthFinishReasonError": TruncatedError,
    "ContentFilterFinishReasonError": ContentFilterError,
    "OpenAIError": FatalError,  # the SDK's own settings: no key, two ways to authenticate
    "ConnectTimeout": RequestTimeoutError,
    "TimeoutException": RequestTimeoutError,
    "Timeout": RequestTimeoutError,
    "ConnectError": ConnectionFailedError,
    "TransportError": ConnectionDroppedError,
    "ClientConnectionError": ConnectionDroppedError,
    "ClientPayloadError": ConnectionDroppedError,
}


def as_request_error(error: BaseException) -> RequestError:
    """
    Return `error` as one of our types: by type, then HTTP status, then class name, and last by its words.

    The words matter only for a user's own client that raises a plain exception: "429 Rate limit exceeded" is a rate
    limit, "failed to generate" is not.
    """
    if isinstance(error, RequestError):
        return error
    message = shorten(str(error)) or type(error).__name__
    status = _status_of(error)
    if status is not None:
        return _error_of_status(error, status, message)
    if isinstance(error, TimeoutError):
        return RequestTimeoutError(message)
    if isinstance(error, ConnectionRefusedError):
        return ConnectionFailedError(message)
    if isinstance(error, ConnectionError):
        return ConnectionDroppedError(message)
    if type(error).__name__ == "APIConnectionError" and error.__cause__ is not None:
        cause = as_request_error(error.__cause__)  # the SDK's "Connection error." hides what happened
        if isinstance(cause, TransientError):
            return type(cause)(f"{message} {cause}")
    for cls in type(error).__mro__:
        if cls.__name__ in _CLASS_NAMES:
            return _CLASS_NAMES[cls.__name__](message)
    for pattern, kind in _WORDS:
        if pattern.search(message):
            return kind(message)
    return ClientError(f"{type(error).__name__}: {message}")


def is_transient(error: BaseException) -> bool:
    """Whether asking again may succeed."""
    if isinstance(error, LLMStageError):
        return isinstance(error, TransientError)
    return isinstance(as_request_error(error), TransientError)


def _error_of_status(error: BaseException, status: int, message: str) -> RequestError:
    """The error of an exception that carries an HTTP status; the openai SDK's carry the answer's body too."""
    retry_after_s = _retry_after_of(error)
    body = getattr(error, "body", None)
    if isinstance(body, dict | list | str) and body:
        with contextlib.suppress(
            TypeError
        ):  # no JSON: deeper than orjson goes, a number beyond 64 bits, half a surrogate
            return error_of_refusal(status, orjson.dumps({"error": body}), retry_after_s=retry_after_s)
    return error_from_status(status, message, retry_after_s=retry_after_s)


def _status_of(error: BaseException) -> int | None:
    """The HTTP status as openai, httpx, requests and aiohttp carry it."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and not isinstance(status, bool) and _is_error_status(status):
                return status
    return None


def _is_error_status(status: int) -> bool:
    return HTTPStatus.MULTIPLE_CHOICES <= status <= 599


def _retry_after_of(error: BaseException) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "headers", None)
    if headers is None or not hasattr(headers, "get"):
        return None
    return parse_retry_after_s(headers.get("retry-after"), headers.get("retry-after-ms"))
