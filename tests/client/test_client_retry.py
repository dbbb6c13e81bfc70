"""Which failures are asked again, and when."""

from __future__ import annotations

import email.utils
import time
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_llm_stage.client.errors.foreign import as_request_error, is_transient
from nemo_llm_stage.client.errors.retry_after import MAX_RETRY_AFTER_S, parse_retry_after_s
from nemo_llm_stage.client.retry import MAX_WAIT_S, RetryPolicy, Sends
from nemo_llm_stage.errors import (
    BadRequestError,
    ClientError,
    ConfigError,
    ConnectionDroppedError,
    ConnectionFailedError,
    RateLimitError,
    RequestError,
    RequestTimeoutError,
    ServerError,
)


class StatusError(Exception):
    """An exception of some HTTP library."""

    def __init__(self, status: Any, **more: Any) -> None:
        super().__init__("failed to generate at rate 429")
        self.status_code = status
        vars(self).update(more)


class ReadError(Exception):
    """As httpx calls it."""


TransportError = type("TransportError", (Exception,), {})

FOREIGN = [
    (RuntimeError("429 Rate limit exceeded"), RateLimitError),
    (RuntimeError("Too Many Requests"), RateLimitError),
    (RuntimeError("failed to generate an accurate, separate answer"), ClientError),
    (RuntimeError("row 4290 is broken"), ClientError),
    (RuntimeError("Request timed out."), RequestTimeoutError),
    (RuntimeError("Error code: 503 - no capacity"), ServerError),
    (RuntimeError("Connection reset by peer"), ConnectionDroppedError),
    (ReadError(""), ConnectionDroppedError),
    (TransportError("x"), ConnectionDroppedError),
    (TimeoutError(), RequestTimeoutError),
    (ConnectionRefusedError("no"), ConnectionFailedError),
    (ConnectionResetError("no"), ConnectionDroppedError),
    (StatusError(429), RateLimitError),
    (StatusError(400), BadRequestError),
    (StatusError(503), ServerError),
    (StatusError(True), ClientError),
    (StatusError(None, response=SimpleNamespace(status_code=502)), ServerError),
    (ValueError("bad row"), ClientError),
]


@pytest.mark.parametrize(("error", "error_type"), FOREIGN, ids=repr)
def test_foreign_errors_are_typed(error: Exception, error_type: type[RequestError]) -> None:
    """By type, then status, then name, and last by their words."""
    if isinstance(error, StatusError) and error.status_code is True:
        error.args = ("failed to generate",)
    assert type(as_request_error(error)) is error_type


def test_settings_are_not_retried() -> None:
    """A mistake of the settings stays one, whatever words it uses."""
    assert not is_transient(ConfigError("the connection timed out setting is wrong"))


def test_retry_after_of_a_foreign_error_is_obeyed() -> None:
    """Where the library keeps the headers."""
    error = as_request_error(StatusError(429, response=SimpleNamespace(headers={"retry-after": "7"})))
    assert isinstance(error, RateLimitError)
    assert error.retry_after_s == 7.0


def pauses(policy: RetryPolicy, *errors: Exception, num: int = 200) -> list[float]:
    """Return pauses after a request failed with these errors, one after another."""
    sends = Sends(0.0)
    for error in errors:
        sends.note(error, 0.0)
    return [policy.pause_s(sends) for _ in range(num)]


def test_backoff_grows_and_is_capped() -> None:
    """Full jitter below a ceiling that doubles up to a minute."""
    policy = RetryPolicy(max_retries=10_000)
    for retry, ceiling in ((1, 1.0), (2, 2.0), (5, 16.0), (50, 60.0), (1100, 60.0)):
        waits = pauses(policy, *[ServerError("x")] * retry)
        assert 0 <= min(waits) < ceiling / 4 < ceiling * 3 / 4 < max(waits) <= ceiling


def test_a_request_without_retries_left_waits_a_second_at_least() -> None:
    """Whatever its base_delay; the pauses grow from four seconds to a minute."""
    policy = RetryPolicy(max_retries=3, base_delay=0.0, give_up_after_s=10_000.0)
    for failures, ceiling in ((3, 0.0), (4, 4.0), (5, 8.0), (50, 60.0)):
        waits = pauses(policy, *[ServerError("x")] * failures)
        assert min(1.0, ceiling) <= min(waits) <= max(waits) <= ceiling


def test_retry_after_is_never_undercut() -> None:
    """Jitter only comes on top, and beyond the cap too."""
    waits = pauses(RetryPolicy(base_delay=5.0), RateLimitError("x", retry_after_s=300.0))
    assert 300 <= min(waits) < max(waits) <= 301


@pytest.mark.parametrize("retry_after_s", [86_400.0, MAX_RETRY_AFTER_S])
def test_no_pause_outlasts_the_request(retry_after_s: float) -> None:
    """What is left of give_up_after is the longest; six hours where nothing is given up by time."""
    error = RateLimitError("x", retry_after_s=retry_after_s)
    assert max(pauses(RetryPolicy(give_up_after_s=40.0), error)) == 40.0
    assert max(pauses(RetryPolicy(), error)) == MAX_WAIT_S


def test_a_dropped_connection_is_retried_at_once_at_first() -> None:
    """Usually the server had closed an idle one."""
    dropped = ConnectionDroppedError("x")
    assert max(pauses(RetryPolicy(), dropped)) == 0.0
    assert max(pauses(RetryPolicy(), dropped, dropped)) > 0.0


HEADERS = [
    ("2", None, 2.0),
    ("0.5", None, 0.5),
    ("2", "150", 0.15),
    ("-1", None, 0.0),
    ("soon", None, None),
    ("86400", None, 86_400.0),
    ("inf", None, MAX_RETRY_AFTER_S),
    ("1e300", None, MAX_RETRY_AFTER_S),
    ("1e999", None, MAX_RETRY_AFTER_S),
    ("-inf", None, 0.0),
    ("nan", None, None),
    ("3", "nan", 3.0),
    ("9" * 5000, None, None),
    ("Thu, 01 Jan 2999 00:00:00 GMT", None, MAX_RETRY_AFTER_S),
    ("Thu, 01 Jan 1970 00:00:00 GMT", None, 0.0),
    ("Thu, 99 Jan 99999999999 00:00:00 GMT", None, None),
    (None, "soon", None),
    (None, None, None),
]


@pytest.mark.parametrize(("retry_after", "retry_after_ms", "seconds"), HEADERS)
def test_retry_after_is_read(retry_after: str | None, retry_after_ms: str | None, seconds: float | None) -> None:
    """Seconds or milliseconds; nonsense is as good as nothing."""
    assert parse_retry_after_s(retry_after, retry_after_ms) == seconds


def test_retry_after_may_be_a_date() -> None:
    """HTTP allows it."""
    seconds = parse_retry_after_s(email.utils.formatdate(time.time() + 100, usegmt=True))
    assert seconds is not None
    assert 90 < seconds <= 101
