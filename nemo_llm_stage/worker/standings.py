"""
How the workers of a run stand: who has nothing to do, and who holds rows that it will not send soon.

Pure. Knows counts and times; knows nothing of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S = 15.0
"""Seconds over which a worker's answers are counted at least, for its rate."""

LONG_S = 1.0
"""Rows that a worker will not have sent after so many seconds go to those that have nothing to do."""


@dataclass(frozen=True, slots=True)
class Standing:
    """
    How one worker stands.

    Attributes:
        num_unsent: Rows that it has and has not sent.
        num_free: Requests more that it could have in flight at once.
        num_answers: Answers since it began.
    """

    num_unsent: int = 0
    num_free: int = 0
    num_answers: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether it could send more than it has."""
        return self.num_free > self.num_unsent


@dataclass(slots=True)
class _Track:
    standing: Standing
    at_s: float
    since: tuple[float, int]
    before: tuple[float, int]


class Standings:
    """The last standing of each worker, and its rate."""

    def __init__(self) -> None:
        self._tracks: dict[str, _Track] = {}
        self._num_idle = 0

    @property
    def num_idle(self) -> int:
        """Workers that could send more than they have."""
        return self._num_idle

    def note(self, worker: str, standing: Standing, now_s: float) -> None:
        """Take note of how a worker stands at the monotonic time `now_s`."""
        mark = (now_s, standing.num_answers)
        track = self._tracks.get(worker)
        if track is None:
            self._tracks[worker] = _Track(standing, now_s, mark, mark)
            self._num_idle += standing.is_idle
            return
        self._num_idle += standing.is_idle - track.standing.is_idle
        track.standing, track.at_s = standing, now_s
        if now_s - track.since[0] >= WINDOW_S:
            track.before, track.since = track.since, mark

    def forget(self, worker: str) -> None:
        """Take note that a worker is gone."""
        track = self._tracks.pop(worker, None)
        self._num_idle -= track is not None and track.standing.is_idle

    def has_too_much(self, worker: str) -> bool:
        """Whether a worker cannot send what it has soon, while others have nothing to do."""
        track = self._tracks.get(worker)
        if track is None or track.standing.num_free > 0 or not track.standing.num_unsent or not self._num_idle:
            return False
        (start_s, num_before), standing = track.before, track.standing
        rate = (standing.num_answers - num_before) / max(1e-9, track.at_s - start_s)
        return standing.num_unsent > LONG_S * rate
