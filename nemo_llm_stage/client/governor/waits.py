"""
How long requests wait before their first token, from the times and lengths of their answers alone. Pure.

An answer takes its wait, and then so long for each token. A line through both tells the wait: a queue, or a full KV
cache, which holds new requests back, adds to all answers alike; a larger batch makes each token slower.
"""

from __future__ import annotations

import math

MIN_ANSWERS = 16
MIN_SPREAD = 0.1
"""Standard deviation of the lengths, as a share of their mean: answers of one length lie on no line."""


class Waits:
    """Fits a line through the times of answers by their lengths."""

    __slots__ = ("_num", "_seconds", "_tokens", "_tokens_seconds", "_tokens_tokens")

    def __init__(self) -> None:
        self._num = 0
        self._tokens = self._seconds = self._tokens_tokens = self._tokens_seconds = 0.0

    def add(self, seconds: float, tokens: float) -> None:
        """Take an answer: its time and its length."""
        self._num += 1
        self._tokens += tokens
        self._seconds += seconds
        self._tokens_tokens += tokens * tokens
        self._tokens_seconds += tokens * seconds

    def share(self, mean_tokens: float) -> float | None:
        """
        Return the part of an answer's time that is the wait, 0 to 1; None where the answers do not tell.

        Args:
            mean_tokens: Length of the answer. That of the first ones to come back is less than usual.
        """
        if self._num < MIN_ANSWERS:
            return None
        spread = self._tokens_tokens / self._num - (self._tokens / self._num) ** 2
        if math.sqrt(max(0.0, spread)) <= MIN_SPREAD * self._tokens / self._num:
            return None
        covariance = (self._tokens_seconds - self._tokens * self._seconds / self._num) / self._num
        per_token_s = covariance / spread
        if per_token_s <= 0:
            return None
        wait_s = max(0.0, (self._seconds - per_token_s * self._tokens) / self._num)
        return wait_s / (wait_s + per_token_s * mean_tokens)
