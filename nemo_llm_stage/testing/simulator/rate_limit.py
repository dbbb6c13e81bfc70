"""
A provider's limit on the requests per minute, as a bucket that fills evenly and holds what comes in a second.

Knows counts and times; nothing of HTTP.
"""

from __future__ import annotations

import math

SECONDS_PER_MINUTE = 60.0


class RateLimit:
    """
    Takes so many requests a minute.

    Args:
        requests_per_minute: On average.
        speedup: Simulated seconds per real second.
    """

    def __init__(self, requests_per_minute: float, speedup: float = 1.0) -> None:
        self._rate_per_s = requests_per_minute / SECONDS_PER_MINUTE
        self._burst = max(1.0, self._rate_per_s)
        self._speedup = speedup
        self._left = self._burst
        self._at_s = -math.inf

    def takes(self, now_s: float) -> bool:
        """Take a request that comes at the real time `now_s`, if one is left."""
        since_s = (now_s - self._at_s) * self._speedup
        self._left = min(self._burst, self._left + since_s * self._rate_per_s)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True

    @property
    def retry_after_s(self) -> int:
        """Simulated seconds until one more is taken, rounded up as providers do."""
        return max(1, math.ceil((1 - self._left) / self._rate_per_s))

    def headers(self) -> str:
        """Return what is left, as header lines."""
        reset_s = (self._burst - self._left) / self._rate_per_s
        return (
            f"x-ratelimit-limit-requests: {self._burst:.0f}\r\n"
            f"x-ratelimit-remaining-requests: {int(self._left)}\r\n"
            f"x-ratelimit-reset-requests: {reset_s:.3f}s\r\n"
        )
