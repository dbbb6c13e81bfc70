"""
What a provider says ahead of its rate limits: ``x-ratelimit-*`` headers become the time of the next send.

Knows the headers of OpenAI, Azure, Groq and those who answer alike, and Anthropic's. Odd values count as not said; the
provider then refuses what is too much, and `pace` follows that. Pure.

Source: platform.openai.com/docs, console.groq.com/docs and docs.anthropic.com, "Rate limits", 2026. Azure has sent -1
for what remains and 0 for the reset, which says nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

MAX_RESET_S = 86_400.0
_MAX_CHARS = 40
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_UNITS_S = (86_400.0, 3600.0, 60.0, 1.0, 0.001)
_KINDS = ("requests", "tokens")
_NAMES = {
    kind: (
        tuple(f"x-ratelimit-{field}-{kind}".encode() for field in ("remaining", "limit", "reset")),
        tuple(f"anthropic-ratelimit-{kind}-{field}".encode() for field in ("remaining", "limit", "reset")),
    )
    for kind in _KINDS
}


RATE_HEADERS = frozenset(names[0] for of_kind in _NAMES.values() for names in of_kind)
"""Without one of these a response says nothing."""


@dataclass(frozen=True, slots=True)
class RateWindow:
    """
    What is left of one rate limit.

    Attributes:
        remaining: Requests or tokens that may still be sent.
        reset_s: Seconds until nothing is used up.
        limit: All of them; None where that is not said.
    """

    remaining: float
    reset_s: float
    limit: float | None = None

    @property
    def num_used(self) -> float:
        """What comes back until the reset; 0 where that is not known."""
        return 0.0 if self.limit is None else self.limit - self.remaining


def parse_rate_windows(
    headers: Mapping[bytes, bytes], now_unix_s: float
) -> tuple[RateWindow | None, RateWindow | None]:
    """
    Return what is left of the limits on requests and on tokens; None for a limit that the headers do not tell.

    Args:
        headers: By lower-case name.
        now_unix_s: The time of day, for resets that are given as one.
    """
    return _window(headers, "requests", now_unix_s), _window(headers, "tokens", now_unix_s)


def _window(headers: Mapping[bytes, bytes], kind: str, now_unix_s: float) -> RateWindow | None:
    for remaining_name, limit_name, reset_name in _NAMES[kind]:
        raw = headers.get(remaining_name)
        if raw is None:
            continue
        remaining, reset_s = _number(raw), parse_reset_s(headers.get(reset_name, b""), now_unix_s)
        if remaining is None or reset_s is None or (remaining <= 0 and reset_s <= 0):
            return None
        limit = _number(headers.get(limit_name, b""))
        return RateWindow(remaining, reset_s, limit if limit is not None and limit >= remaining else None)
    return None


def parse_reset_s(raw: bytes, now_unix_s: float) -> float | None:
    """
    Return the seconds until a reset, at most a day; None where `raw` tells none.

    Args:
        raw: Seconds (``59``, ``0.3``), a duration (``6m0s``, ``1m30.9s``, ``12ms``), a unix time or an RFC 3339 time.
        now_unix_s: The time of day.
    """
    text = raw.decode("latin-1").strip()
    if not text or len(text) > _MAX_CHARS:
        return None
    number = _number(raw)
    if number is not None:
        return _until(number, now_unix_s)
    match = _DURATION.fullmatch(text)
    if match is not None and any(match.groups()):
        seconds = sum(float(value) * unit for value, unit in zip(match.groups(), _UNITS_S, strict=True) if value)
        return min(seconds, MAX_RESET_S)
    try:
        at = datetime.fromisoformat(text)
        return min(max(0.0, at.timestamp() - now_unix_s), MAX_RESET_S) if at.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _until(number: float, now_unix_s: float) -> float:
    if number > 1e11:  # a unix time in milliseconds
        number /= 1000
    seconds = number - now_unix_s if number > 1e8 else number
    return min(max(0.0, seconds), MAX_RESET_S)


def _number(raw: bytes) -> float | None:
    try:
        number = float(raw) if len(raw) <= _MAX_CHARS else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
