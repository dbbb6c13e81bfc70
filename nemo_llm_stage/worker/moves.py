"""How many rows of a run went from one worker to others. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moves:
    """
    What moved so far.

    Attributes:
        num_given_back: Rows that a worker with too many has given back unsent, for others; estimated where rows were
            not counted.
        num_second_sends: Rows in flight at a slow server that were sent a second time.
        slow_urls: Base URLs of these servers.
    """

    num_given_back: int = 0
    num_second_sends: int = 0
    slow_urls: tuple[str, ...] = ()


NO_MOVES = Moves()
