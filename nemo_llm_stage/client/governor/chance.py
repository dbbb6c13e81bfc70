"""
Refusals that come by chance, however few requests are sent: a lower limit or a slower pace is no cure for them.

A rate limit, a full queue and a bound on requests at once refuse hardly anything as soon as less is sent. So where a
part of the requests is refused, now here and now there, less is sent for a trial: if as large a share is refused then,
it came by chance, and nothing is held back for it. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

MIN_REFUSALS, MIN_SENDS, MIN_SPAN_S, MAX_SPAN_S = 3, 24, 2.0, 120.0
"""What a stretch of time has before anything is concluded from it."""

MAX_SHARE = 0.25
"""Where a larger share of the sends is refused, less is sent, whatever the reason."""

CLEAR_SHARE, RARE_AFTER_S = 0.04, 180.0
"""A smaller one may be what a rate limit refuses of a pace that follows it: a trial for it comes only after a while."""

MOST_EXPECTED = 0.06
"""No larger share is expected in a trial: that of the first moment is more than usual."""

LONGEST_CALM = 0.8
"""
No more than this part of the sends is taken in a row: where a server takes all for a while and then nothing, or refuses
many in one moment, it has a reason.
"""

TRIAL_RATE, SLOWER = 0.7, 0.8
"""Of what was taken a second, so much is sent in a trial; it is one where no more was than the second."""

SAME_SHARE = 0.5
"""As a part of the share before the trial: from there on it is the same."""

NONE_OF, FEW_OF = 4.0, 6.5
"""A trial ends without a refusal, or with fewer than `MIN_REFUSALS`, once so many should have come."""

NUM_CHECKED, MORE, MUCH = 256, 0.35, 0.5
"""Of so many sends a share of more than `MORE`, or of a few of more than `MUCH`: there is another reason now."""

PAUSE_S, MAX_PAUSE_S, LONGER = 10.0, 3600.0, 3.0
"""After a trial that found a reason there is none for so long, and each time for a longer time."""


@dataclass(slots=True)
class _Stretch:
    """Some time in which requests were refused. The counts are those at its start; `refused_at`: sends since then."""

    at_s: float
    num_sent: float
    num_ended: float
    refused_at: list[float] = field(default_factory=list)

    @property
    def longest_calm(self) -> float:
        """Most sends in a row up to the last refusal that were taken."""
        return max(later - earlier for earlier, later in pairwise([0.0, *self.refused_at]))


@dataclass(frozen=True, slots=True)
class _Trial:
    """Less is sent. What was taken a second before, and the share that was refused."""

    taken_per_s: float
    share: float

    @property
    def expected(self) -> float:
        """The share that is expected if it is chance."""
        return min(MOST_EXPECTED, self.share)


class Chance:
    """
    Looks at one refusal after another.

    Attributes:
        share: Of the sends that are refused by chance; None where refusals mean that less should be sent.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self._stretch = _Stretch(-math.inf, 0.0, 0.0)
        self._trial: _Trial | None = None
        self._not_before_s = -math.inf
        self._first_at_s = math.inf
        self._pause_s = PAUSE_S

    @property
    def trial_per_s(self) -> float | None:
        """Requests a second that are sent for a trial; None where there is none."""
        return None if self._trial is None else TRIAL_RATE * self._trial.taken_per_s

    def note_refusal(self, now_s: float, number: float, num_sent: float, in_flight: int) -> bool:
        """
        Take note of a refusal; return whether it came by chance, or in a trial.

        Args:
            now_s: The time now.
            number: Of the request: so many had been sent then, this one among them.
            num_sent: Requests sent so far.
            in_flight: Of these, those without an answer; this one has one.
        """
        self._first_at_s = min(self._first_at_s, now_s)
        if now_s - self._stretch.at_s > MAX_SPAN_S:
            self._begin(now_s, num_sent, in_flight)
        stretch = self._stretch
        if number > stretch.num_sent:
            stretch.refused_at.append(number - stretch.num_sent)
            if self._is_over(stretch, now_s, num_sent - in_flight):
                self._begin(now_s, num_sent, in_flight)
        return self.share is not None or self._trial is not None

    def tick(self, now_s: float, num_sent: float, in_flight: int) -> None:
        """End a trial in which too little was refused. The arguments are those of `note_refusal`."""
        trial, num = self._trial, num_sent - self._stretch.num_sent
        if trial is None:
            return
        is_none = not self._stretch.refused_at and num * trial.expected >= NONE_OF
        if is_none or num * trial.expected >= FEW_OF or now_s - self._stretch.at_s > MAX_SPAN_S:
            self._give_up(now_s)
            self._begin(now_s, num_sent, in_flight)

    def _begin(self, now_s: float, num_sent: float, in_flight: int) -> None:
        self._stretch = _Stretch(now_s, num_sent, num_sent - in_flight)

    def _is_over(self, stretch: _Stretch, now_s: float, num_ended: float) -> bool:
        """Look at what came since the stretch began; return whether something was concluded from it."""
        num, num_refused = stretch.refused_at[-1], len(stretch.refused_at)
        if num < MIN_SENDS or num_refused < MIN_REFUSALS:
            return False
        share, span_s = num_refused / num, now_s - stretch.at_s
        if self.share is not None:
            return self._check(share, num, now_s)
        if self._trial is not None:
            is_slower = num <= SLOWER * self._trial.taken_per_s * span_s
            self._end_trial(share if is_slower else 1.0, self._trial, now_s)
            return True
        is_rare = share < CLEAR_SHARE and now_s - self._first_at_s < RARE_AFTER_S
        is_even = share <= MAX_SHARE and stretch.longest_calm <= LONGEST_CALM * num
        if is_even and not is_rare and span_s >= MIN_SPAN_S and now_s >= self._not_before_s:
            taken = min(num, num_ended - stretch.num_ended) - num_refused  # a burst is not answered yet
            self._trial = _Trial(max(1.0, taken) / span_s, share)
        return span_s >= MIN_SPAN_S

    def _end_trial(self, share: float, trial: _Trial, now_s: float) -> None:
        if SAME_SHARE * trial.expected <= share <= MAX_SHARE:
            self._trial, self.share = None, share
        else:
            self._give_up(now_s)

    def _check(self, share: float, num: float, now_s: float) -> bool:
        """Look whether refusals still come by chance."""
        if num < NUM_CHECKED and share <= MUCH:
            return False
        if share > (MORE if num >= NUM_CHECKED else MUCH):
            self._give_up(now_s)
        else:
            self.share = 0.5 * ((self.share or share) + share)
        return True

    def _give_up(self, now_s: float) -> None:
        self._trial = self.share = None
        self._not_before_s = now_s + self._pause_s
        self._pause_s = min(MAX_PAUSE_S, LONGER * self._pause_s)
