"""
Refusals that come by chance, however few requests are sent: a lower limit or a slower pace is no cure for them.

A rate limit, a full queue and a bound on requests at once refuse hardly anything as soon as less is sent. A server that
took more while more was sent, and refuses as large a share of less, gains nothing by less. Pure.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

MIN_REFUSALS, MIN_SENDS, MIN_SPAN_S, MAX_SPAN_S = 3, 24, 2.0, 120.0
"""What a stretch of time has before it is compared with others."""

NUM_STRETCHES = 8
"""So many are remembered."""

MAX_SHARE = 0.25
"""Where a larger share of the sends is refused, less is sent, whatever the reason."""

SLOWER, SAME_SHARE = 0.75, 0.5
"""Of what the server took, at most so much is sent, and so much of the share is refused, or more: that is no cure."""

LATEST_FIRST = 0.75
"""
The first refusal comes within this part of the sends: where a server takes all for a while and then nothing, the
refusals stand at the end.
"""

NUM_CHECKED, MORE = 256, 2.0
MUCH = 0.5
"""Of so many sends a share that is `MORE` times as large, or of a few `MUCH`: there is another reason now."""

PAUSE_S, MAX_PAUSE_S = 120.0, 3600.0
"""Then nothing is taken for chance for so long, and twice as long each time."""


@dataclass(slots=True)
class _Stretch:
    """Some time in which requests were refused. The counts are those at its start; `refused_at`: sends since then."""

    at_s: float
    num_sent: float
    num_ended: float
    held_s: float = 0.0
    refused_at: list[float] = field(default_factory=list)


class Chance:
    """
    Looks at one refusal after another.

    Attributes:
        share: Of the sends that are refused by chance; None where refusals mean that less should be sent.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self._stretch = _Stretch(-math.inf, 0.0, 0.0)
        self._before: deque[tuple[float, float]] = deque(maxlen=NUM_STRETCHES)  # what was taken per second, and refused
        self._held_until_s = self._not_before_s = -math.inf
        self._pause_s = PAUSE_S

    def note_refusal(self, now_s: float, num_sent: float, in_flight: int, hold_s: float = 0.0) -> bool:
        """
        Take note of a refusal; return whether it came by chance.

        Args:
            now_s: The time now.
            num_sent: Requests sent so far, this one among them.
            in_flight: Of these, those without an answer; this one has one.
            hold_s: For so long nothing is sent now, where it did not come by chance.
        """
        if now_s - self._stretch.at_s > MAX_SPAN_S:
            self._stretch = _Stretch(now_s, num_sent, num_sent - in_flight)
            return self.share is not None
        stretch = self._stretch
        stretch.refused_at.append(num_sent - stretch.num_sent)
        until_s = max(self._held_until_s, now_s + hold_s)
        stretch.held_s += until_s - max(now_s, self._held_until_s)
        self._held_until_s = until_s
        look = self._check if self.share is not None else self._judge
        if look(stretch, now_s, num_sent, num_sent - in_flight):
            self._stretch = _Stretch(now_s, num_sent, num_sent - in_flight)
        return self.share is not None

    def _judge(self, stretch: _Stretch, now_s: float, num_sent: float, num_ended: float) -> bool:
        """Compare a stretch with those before; return whether it is over."""
        num, num_refused = num_sent - stretch.num_sent, len(stretch.refused_at)
        if num_refused < MIN_REFUSALS or num < MIN_SENDS or now_s - stretch.at_s < MIN_SPAN_S:
            return False
        share = num_refused / num
        if share > MAX_SHARE or stretch.refused_at[0] > LATEST_FIRST * num or now_s < self._not_before_s:
            return True
        open_s = max(1.0, now_s - stretch.at_s - stretch.held_s)
        for taken_per_s, share_then in self._before:
            if num / open_s <= SLOWER * taken_per_s and share >= SAME_SHARE * share_then:
                self.share = 0.5 * (share + share_then)
        taken = min(num, num_ended - stretch.num_ended) - num_refused  # a burst is not answered yet, or not sent now
        self._before.append((taken / (now_s - stretch.at_s), share))
        return True

    def _check(self, stretch: _Stretch, now_s: float, num_sent: float, _: float) -> bool:
        """Look whether refusals still come by chance; return whether the stretch is over."""
        num, num_refused = num_sent - stretch.num_sent, len(stretch.refused_at)
        share = num_refused / max(1.0, num)
        is_much = num >= MIN_SENDS and share > MUCH
        if num < NUM_CHECKED and not is_much:
            return False
        if is_much or share > max(MAX_SHARE, MORE * (self.share or 0.0)):
            self.share = None
            self._before.clear()
            self._not_before_s = now_s + self._pause_s
            self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s)
        else:
            self.share = 0.5 * ((self.share or 0.0) + share)
        return True
