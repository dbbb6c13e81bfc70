"""
Rows that whoever submitted them may take back as long as they are not sent, and drop at any time.

Knows places of rows; knows nothing of what a row is.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection
from typing import NamedTuple

from nemo_llm_stage.core import Outcome


class Hand:
    """
    What came back of one submission. Filled on the event loop, emptied by any thread.

    Attributes:
        is_open: Whether rows are being taken back: one that has not sent anything may leave.
        dropped: Places of rows that were cancelled because another worker has answered them → the results of their
            columns that were there and that nobody was told of.
        told: Places of rows in flight for long → the columns whose results were told.
    """

    __slots__ = ("_places", "dropped", "is_open", "told")

    def __init__(self) -> None:
        self.is_open = False
        self.dropped: dict[int, Outcome] = {}
        self.told: dict[int, Collection[str]] = {}
        self._places: list[int] = []

    def add(self, place: int) -> None:
        """Note that the row at this place of the submission is not run."""
        self._places.append(place)

    def take(self) -> list[int]:
        """Return the places that came back since the last call."""
        taken = []
        while self._places:
            taken.append(self._places.pop())
        return taken


class OverdueRow(NamedTuple):
    """
    A row whose request is in flight for long.

    Attributes:
        hand: Of its submission.
        place: There.
        url: Base URL of the server.
        age_s: Seconds since the request was sent.
        known: The results of the columns that it has already.
        num_missing: Columns that it lacks.
    """

    hand: Hand
    place: int
    url: str
    age_s: float
    known: Outcome
    num_missing: int


def portable(known: Outcome) -> Outcome:
    """Return results that go to another process; none where one of them, a user's own object, cannot be pickled."""
    try:
        pickle.dumps(known)
    except Exception:  # noqa: BLE001 - a user's class may raise anything
        return {}
    return known
