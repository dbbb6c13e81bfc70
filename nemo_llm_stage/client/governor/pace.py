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

MIN_SENDS = 10
"""Of fewer requests sent lately a refusal tells no rate: the refused one waits as its retries do, and that is all."""

MAX_HOLD_S = 60.0
"""A refusal holds every request back for at most so long: the request itself waits as long as it was asked to."""

MIN_HOLD_S = 2.0
NUM_LATEST, MUCH_REFUSED = 8, 0.25
"""
A shorter Retry-After, or where a smaller share of the latest requests is refused, holds back the refused request alone;
the rate does the rest.
"""

RATE_WEIGHT = 0.1
"""Of the newest headers in the mean that tells how fast a limit fills."""


@dataclass(slots=True)
class _Second:
    """What was sent in one second."""

    at_s: float
    num_sent: int = 0
    num_refused: int = 0


class _Bucket:
    """
    What is left of a limit, as headers last told it: it fills evenly, and each send takes from it.

    Attributes:
        num_taken: What all sends took so far.
    """

    def __init__(self) -> None:
        self.num_taken = 0.0
        self._left = self._most = math.inf
        self._num_used = self._reset_s = 0.0
        self._at_s = self._full_at_s = -math.inf

    def take(self, cost: float) -> None:
        """Take note of a send."""
        self.num_taken += cost
        self._left -= cost

    def fill(self, window: RateWindow, told_at_s: float, num_taken_since: float, now_s: float) -> None:
        """
        Take what a response says.

        Args:
            window: Likewise.
            told_at_s: When it was true: providers count a request as it comes, not as it is answered.
            num_taken_since: By the sends after that.
            now_s: The time now.
        """
        age_s = max(0.0, now_s - told_at_s)
        self._most = math.inf if window.limit is None else window.limit
        if window.num_used >= 1:
            rounded = 0.5 if window.num_used > 1 else 0.0  # what is left is rounded down; one used is one
            self._num_used += RATE_WEIGHT * (window.num_used - rounded - self._num_used)
            self._reset_s += RATE_WEIGHT * (window.reset_s - self._reset_s)
        self._left = min(self._most, window.remaining + self.rate_per_s * age_s - num_taken_since)
        self._at_s, self._full_at_s = now_s, now_s + min(max(0.0, window.reset_s - age_s), MAX_HOLD_S)

    def note_empty(self) -> None:
        """Take note of a refusal: nothing was left when the refused request came, whatever headers have told."""
        self._left = min(self._left, 0.0)

    @property
    def rate_per_s(self) -> float:
        """What comes back in a second, as far as headers tell; 0 where they do not."""
        return self._num_used / self._reset_s if self._reset_s > 0 else 0.0

    def wait_s(self, cost: float, now_s: float, *, is_careful: bool) -> float:
        """
        Return the seconds until so much is left.

        Args:
            cost: Likewise.
            now_s: The time now.
            is_careful: Wait until nothing is used up, e.g. because a request was refused in spite of all this.
        """
        if now_s >= self._full_at_s and not self.rate_per_s:
            self._left = math.inf  # until the next response tells more
        self._left = min(self._most, self._left + self.rate_per_s * max(0.0, now_s - self._at_s))
        self._at_s = now_s
        if self._left >= cost:
            return 0.0
        if not self.rate_per_s:
            return self._full_at_s - now_s
        wanted = max(cost, self._most) if is_careful else cost
        return min(MAX_HOLD_S, (wanted - self._left) / self.rate_per_s)


class Pace:
    """
    Says when the next request may be sent.

    Attributes:
        holds_back: Whether anything was said or refused so far; until then `wait_s` is 0.
    """

    def __init__(self) -> None:
        self.holds_back = False
        self._seconds: deque[_Second] = deque(maxlen=int(WINDOW_S) + 1)
        self._second = _Second(-math.inf)
        self._rate: float | None = None
        self._rate_before: float | None = None
        self._is_trial = False
        self._least = 0.0
        self._credit = 1.0
        self._credit_at_s = -math.inf
        self._grown_at_s = self._cut_at_s = self._refused_at_s = self._held_until_s = -math.inf
        self._requests, self._tokens = _Bucket(), _Bucket()

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
        if not self.holds_back:
            return 0.0
        wait_s = max(0.0, self._held_until_s - now_s)
        is_careful = now_s - self._refused_at_s <= WINDOW_S
        wait_s = max(wait_s, self._requests.wait_s(1 + num_leaving, now_s, is_careful=is_careful))
        wait_s = max(wait_s, self._tokens.wait_s(1e-9, now_s, is_careful=is_careful))
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
        if now_s - self._second.at_s >= 1:
            self._second = _Second(math.floor(now_s))
            self._seconds.append(self._second)
        self._second.num_sent += 1
        self._credit -= 1
        self._requests.take(1.0)
        self._tokens.take(tokens)

    def note_refusal(self, sent_at_s: float, now_s: float, retry_after_s: float | None) -> None:
        """
        Take note that a request was refused because of a rate limit.

        Args:
            sent_at_s: When it was sent.
            now_s: The time now.
            retry_after_s: Seconds that the server asked for; None for none.
        """
        self.holds_back = True
        for second in reversed(self._seconds):
            if second.at_s <= sent_at_s:
                second.num_refused += 1
                break
        if retry_after_s is not None and retry_after_s >= MIN_HOLD_S and self._is_much_refused():
            self._held_until_s = max(self._held_until_s, now_s + min(MAX_HOLD_S, retry_after_s))
        self._refused_at_s = now_s
        self._requests.note_empty()
        if self._rate is None and self._num_sent_lately(now_s) < MIN_SENDS:
            return
        accepted = self._accepted_per_s(now_s)
        is_new = sent_at_s > self._cut_at_s
        if is_new and now_s - self._cut_at_s > WINDOW_S:  # headers count, unless they have just been wrong
            self._least = KEPT * self._requests.rate_per_s
        elif is_new:
            self._least = 0.0
        accepted = max(accepted, self._least)
        if self._rate is None:
            self._rate, self._credit, self._credit_at_s = accepted, 0.0, now_s
        if is_new:
            self._cut_at_s = self._grown_at_s = now_s
            self._rate = KEPT * accepted
            self._credit = min(0.0, self._credit)
        self._rate = max(MIN_RATE_PER_S, min(self._rate, accepted))

    def set_trial(self, rate_per_s: float | None, now_s: float) -> None:
        """Send so many a second, held back by nothing but headers; None for as many as before the trial."""
        if rate_per_s is not None:
            self.holds_back, self._rate_before, self._rate = True, self._rate, rate_per_s
            self._credit, self._held_until_s = 0.0, -math.inf
        else:
            self._rate = self._rate_before
        self._is_trial = rate_per_s is not None
        self._credit_at_s = self._grown_at_s = now_s

    def forget_refusals(self) -> None:
        """Hold nothing back because of refusals: no pace would have spared them."""
        self._rate, self._is_trial = None, False
        self._refused_at_s = self._held_until_s = -math.inf

    @property
    def taken(self) -> tuple[float, float]:
        """Requests and tokens sent so far."""
        return self._requests.num_taken, self._tokens.num_taken

    def note_windows(
        self,
        windows: tuple[RateWindow | None, RateWindow | None],
        sent_at_s: float,
        taken_then: tuple[float, float],
        now_s: float,
    ) -> None:
        """
        Take note of what a response's headers say.

        Args:
            windows: Of requests and of tokens.
            sent_at_s: When its request was sent.
            taken_then: `taken` just after that.
            now_s: The time now.
        """
        for bucket, window, taken in zip((self._requests, self._tokens), windows, taken_then, strict=True):
            if window is not None:
                self.holds_back = True
                bucket.fill(window, sent_at_s, bucket.num_taken - taken, now_s)

    def _refill(self, now_s: float) -> float:
        """Let the credit and the rate grow with the time; forget the rate after a long calm."""
        assert self._rate is not None
        if now_s - self._refused_at_s > FORGOTTEN_AFTER_S and not self._is_trial:
            self._rate = None
            return math.inf
        grown_s = now_s - self._grown_at_s
        if grown_s >= 1 and not self._is_trial:
            self._rate *= (1 + GROWTH_PER_S) ** min(grown_s, FORGOTTEN_AFTER_S)
            self._grown_at_s = now_s
        if self._credit_at_s > -math.inf:
            self._credit += self._rate * max(0.0, now_s - self._credit_at_s)
        self._credit_at_s = now_s
        self._credit = min(self._credit, max(1.0, 0.25 * self._rate))
        return self._credit

    def _is_much_refused(self) -> bool:
        """Whether a Retry-After is for all: of the latest requests many are refused."""
        num_sent = num_refused = 0
        for second in reversed(self._seconds):
            num_sent, num_refused = num_sent + second.num_sent, num_refused + second.num_refused
            if num_sent >= NUM_LATEST:
                break
        return num_refused >= MUCH_REFUSED * num_sent

    def _lately(self, now_s: float) -> list[_Second]:
        return [second for second in self._seconds if now_s - second.at_s <= WINDOW_S]

    def _num_sent_lately(self, now_s: float) -> int:
        return sum(second.num_sent for second in self._lately(now_s))

    def _accepted_per_s(self, now_s: float) -> float:
        recent = self._lately(now_s)
        if not recent:
            return MIN_RATE_PER_S
        num = sum(second.num_sent - second.num_refused for second in recent)
        return max(MIN_RATE_PER_S, num / max(MIN_SPAN_S, now_s - recent[0].at_s))
