"""
Which failures are asked again, and when.

One table from foreign exceptions to our types, one waiting rule. Knows nothing of transports: an exception is read by
its type and status, and by its words only when a user's own client raises nothing better.
"""

from __future__ import annotations

import random
import re
from http import HTTPStatus

import orjson
from tenacity import RetryCallState

from nemo_llm_stage.client.refusal import error_from_status, error_of_refusal
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

MAX_BACKOFF_S = 60.0
"""The longest wait that we choose ourselves; a server's Retry-After is obeyed beyond it."""

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
    message = str(error) or type(error).__name__
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


def backoff_s(retry: int, *, base_delay: float, error: RequestError | None = None) -> float:
    """
    Seconds to wait before retry number `retry` (1 is the first).

    Full jitter: ``U(0, min(60, base_delay · 2^(retry-1)))``; a server's Retry-After is never undercut and gets up to
    one ``base_delay`` (at most a second) of jitter on top, so that rows do not come back all at once. A dropped
    connection is asked again at once the first time: mostly the server had closed an idle one.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter", 2015; RFC 9110 §10.2.3 (Retry-After).
    """
    if isinstance(error, TransientError) and error.retry_after_s is not None:
        return error.retry_after_s + random.uniform(0, min(1.0, base_delay))  # noqa: S311 - jitter, not a secret
    if isinstance(error, ConnectionDroppedError) and retry == 1:
        return 0.0
    ceiling = min(MAX_BACKOFF_S, base_delay * 2.0 ** min(retry - 1, 60))
    return random.uniform(0, ceiling)  # noqa: S311 - jitter, not a secret


class WaitBackoff:
    """`backoff_s` as a tenacity wait strategy."""

    def __init__(self, base_delay: float) -> None:
        self._base_delay = base_delay

    def __call__(self, state: RetryCallState) -> float:
        """Seconds to sleep after the attempt that `state` tells of."""
        error = state.outcome.exception() if state.outcome else None
        request_error = as_request_error(error) if error else None
        return backoff_s(state.attempt_number, base_delay=self._base_delay, error=request_error)


def parse_retry_after_s(retry_after: str | None, retry_after_ms: str | None = None) -> float | None:
    """
    Seconds to wait, from the headers' texts; None where they say nothing usable.

    Takes ``retry-after-ms`` (milliseconds), and ``Retry-After`` as seconds or as an HTTP date (RFC 9110 §10.2.3).
    """
    if retry_after_ms is not None:
        try:
            return max(0.0, float(retry_after_ms) / 1000)
        except ValueError:
            pass
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        return _seconds_until(retry_after)


def _seconds_until(http_date: str) -> float | None:
    import email.utils
    import time

    try:
        return max(0.0, email.utils.parsedate_to_datetime(http_date).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _error_of_status(error: BaseException, status: int, message: str) -> RequestError:
    """The error of an exception that carries an HTTP status; the openai SDK's carry the answer's body too."""
    retry_after_s = _retry_after_of(error)
    body = getattr(error, "body", None)
    if isinstance(body, dict | str) and body:
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
