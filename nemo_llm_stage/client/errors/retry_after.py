"""
How long a server asks us to wait: the ``Retry-After`` headers as seconds.

Source: RFC 9110 §10.2.3. Pure.
"""

from __future__ import annotations


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
