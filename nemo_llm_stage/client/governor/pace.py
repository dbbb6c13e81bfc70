"""
How fast requests may be sent to a server that limits their rate: by its headers ahead, by its refusals after.

Without a refusal and without headers nothing is held back. Pure.

Source: the AWS SDKs' adaptive retry mode likewise sends no faster than what was lately accepted, from the first
throttling on.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from nemo_llm_stage.client.governor.rate_headers import RateWindow

WINDOW_S = 10.0
"""What was accepted lately is counted over so long."""

MIN_SPAN_S = 1.0
MIN_RATE_PER_S = 0.2
KEPT = 0.98
"""After a refusal: this share of what was accepted."""

GROWTH_PER_S = 0.01
FORGOTTEN_AFTER_S = 180.0
"""Without a refusal for so long, nothing is held back."""

MAX_HOLD_S = 60.0
"""A refusal holds every request back for at most so long: the request itself waits as long as it was asked to."""

MIN_HOLD_S = 2.0
"""A shorter Retry-After holds back the refused request alone; the rate does the rest."""


@dataclass(slots=True)
class _Second:
    """What was sent in one second."""

    at_s: float
    num_sent: int = 0
    num_refused: int = 0


class Pace:
    """Says when the next request may be sent."""

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque(maxlen=int(WINDOW_S) + 1)
        self._rate: float | None = None
        self._credit = 1.0
        self._credit_at_s = -math.inf
        self._grown_at_s = self._cut_at_s = self._refused_at_s = self._held_until_s = -math.inf
        self._left = [math.inf, math.inf]
        self._ready_at_s = [-math.inf, -math.inf]

    @property
    def rate_per_s(self) -> float | None:
        """Requests a second that are sent at most; None for any number."""
        return self._rate

    def wait_s(self, now_s: float, num_leaving: int = 0) -> float:
        """
        Return the seconds until the next request may be sent; 0 for at once.

        Args:
            now_s: The time now.
            num_leaving: Requests that were let go and are not sent yet.
        """
        wait_s = max(0.0, self._held_until_s - now_s)
        if self._left[0] <= num_leaving:
            wait_s = max(wait_s, self._ready_at_s[0] - now_s)
        if self._left[1] <= 0:
            wait_s = max(wait_s, self._ready_at_s[1] - now_s)
        if self._rate is not None and self._refill(now_s) < 1 + num_leaving:
            wait_s = max(wait_s, (1 + num_leaving - self._credit) / self._rate)
        return wait_s

    def note_sent(self, now_s: float, tokens: float = 0.0) -> None:
        """
        Take note of a request that is sent.

        Args:
            now_s: The time now.
            tokens: What it is expected to take of a limit on tokens.
        """
        if not self._seconds or now_s - self._seconds[-1].at_s >= 1:
            self._seconds.append(_Second(math.floor(now_s)))
        self._seconds[-1].num_sent += 1
        self._credit -= 1
        for kind, cost in ((0, 1.0), (1, tokens)):
            if self._left[kind] <= 0 and now_s >= self._ready_at_s[kind]:
                self._left[kind] = math.inf  # until the next answer tells more
            self._left[kind] -= cost

    def note_refusal(self, sent_at_s: float, now_s: float, retry_after_s: float | None) -> None:
        """
        Take note that a request was refused because of a rate limit.

        Args:
            sent_at_s: When it was sent.
            now_s: The time now.
            retry_after_s: Seconds that the server asked for; None for none.
        """
        for second in reversed(self._seconds):
            if second.at_s <= sent_at_s:
                second.num_refused += 1
                break
        if retry_after_s is not None and retry_after_s >= MIN_HOLD_S:
            self._held_until_s = max(self._held_until_s, now_s + min(MAX_HOLD_S, retry_after_s))
        self._refused_at_s = now_s
        accepted = self._accepted_per_s(now_s)
        if self._rate is None:
            self._rate, self._credit, self._credit_at_s = accepted, 0.0, now_s
        if sent_at_s >= self._cut_at_s:  # a new episode
            self._cut_at_s = self._grown_at_s = now_s
            self._rate = KEPT * accepted
            self._credit = min(0.0, self._credit)
        self._rate = max(MIN_RATE_PER_S, min(self._rate, accepted))

    def note_windows(self, windows: tuple[RateWindow | None, RateWindow | None], in_flight: int, now_s: float) -> None:
        """
        Take note of what an answer's headers say.

        Args:
            windows: Of requests and of tokens.
            in_flight: Requests in flight: the server may not have counted them.
            now_s: The time now.
        """
        for kind, window in enumerate(windows):
            if window is None:
                continue
            self._left[kind] = window.remaining - (in_flight if kind == 0 else 0)
            wait_s = window.one_more_s if now_s - self._refused_at_s > WINDOW_S else window.reset_s
            self._ready_at_s[kind] = now_s + min(wait_s, MAX_HOLD_S)

    def _refill(self, now_s: float) -> float:
        """Let the credit and the rate grow with the time; forget the rate after a long calm."""
        assert self._rate is not None
        if now_s - self._refused_at_s > FORGOTTEN_AFTER_S:
            self._rate = None
            return math.inf
        grown_s = now_s - self._grown_at_s
        if grown_s >= 1:
            self._rate *= (1 + GROWTH_PER_S) ** min(grown_s, FORGOTTEN_AFTER_S)
            self._grown_at_s = now_s
        if self._credit_at_s > -math.inf:
            self._credit += self._rate * max(0.0, now_s - self._credit_at_s)
        self._credit_at_s = now_s
        self._credit = min(self._credit, max(1.0, 0.25 * self._rate))
        return self._credit

    def _accepted_per_s(self, now_s: float) -> float:
        recent = [second for second in self._seconds if now_s - second.at_s <= WINDOW_S]
        if not recent:
            return MIN_RATE_PER_S
        num = sum(second.num_sent - second.num_refused for second in recent)
        return max(MIN_RATE_PER_S, num / max(MIN_SPAN_S, now_s - recent[0].at_s))
