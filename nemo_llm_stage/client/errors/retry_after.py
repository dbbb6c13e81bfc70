"""
How long a server asks us to wait: the ``Retry-After`` headers as seconds.

Source: RFC 9110 §10.2.3. Pure.
"""

from __future__ import annotations

import email.utils
import math
import time

MAX_RETRY_AFTER_S = 365 * 86_400.0
"""Longer requests are cut to a year: no wait of ours comes near it, and every number stays finite."""

_MAX_CHARS = 64
"""A longer header is neither a number of seconds nor a date."""


def parse_retry_after_s(retry_after: str | None, retry_after_ms: str | None = None) -> float | None:
    """
    Return the seconds to wait, finite and not negative; None where the headers hold nothing usable.

    Args:
        retry_after: Header ``Retry-After``: seconds, or an HTTP date (RFC 9110 §10.2.3).
        retry_after_ms: Header ``retry-after-ms``: milliseconds. Takes precedence where it is a number.
    """
    milliseconds = _number(retry_after_ms)
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    if retry_after is None:
        return None
    seconds = _number(retry_after)
    return _seconds_until(retry_after) if seconds is None else _bounded(seconds)


def _number(text: str | None) -> float | None:
    """Return the number in `text`; None where it is none, "nan" included."""
    if text is None or len(text) > _MAX_CHARS:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _seconds_until(http_date: str) -> float | None:
    if len(http_date) > _MAX_CHARS:
        return None
    try:
        return _bounded(email.utils.parsedate_to_datetime(http_date).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _bounded(seconds: float) -> float:
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S)
