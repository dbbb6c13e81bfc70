"""
The requests that wait for a permit of some server, in the order in which they came.

Knows wishes; knows nothing of limits.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from nemo_llm_stage.client.endpoints.affinity import Homes
from nemo_llm_stage.client.endpoints.member import Member

NUM_LOOKED_AT = 256
"""Waiting requests among which one is looked for that suits a server with a free permit."""


@dataclass(eq=False, slots=True)
class Waiter:
    """
    One request that waits.

    Attributes:
        turn: Done with the server of its permit.
        tried: Servers that it should not go to if there is another.
        affinity: Its group; see `affinity`.
    """

    turn: asyncio.Future[Member]
    tried: Sequence[Member]
    affinity: int | None


Pick: TypeAlias = Callable[[Sequence[Member], int | None], Member | None]
"""Returns a server with a free permit for a request that has tried some servers and is of a group."""


class WaitingLine:
    """
    Requests that wait.

    Args:
        homes: Of their groups.

    Attributes:
        waiters: Oldest first.
    """

    def __init__(self, homes: Homes) -> None:
        self._homes = homes
        self.waiters: deque[Waiter] = deque()

    def add(self, tried: Sequence[Member], affinity: int | None) -> Waiter:
        """Add a request and return it."""
        waiter = Waiter(asyncio.get_running_loop().create_future(), tried, affinity)
        self.waiters.append(waiter)
        return waiter

    def discard(self, waiter: Waiter) -> None:
        """Take a request out, if it is still there."""
        if waiter in self.waiters:
            self.waiters.remove(waiter)

    def cancel(self) -> None:
        """Cancel the wait of all requests, which then discard themselves."""
        for waiter in self.waiters:
            waiter.turn.cancel()

    def take(self, pick: Pick, usable: Collection[Member]) -> tuple[Waiter, Member] | None:
        """
        Take out the request that enters next, and return it with its server; None where no free permit suits any.

        That is the first one whose group is at home at a server with a free permit, else the first of a group without
        a home, else the first.
        """
        start = 0
        if self.waiters and self.waiters[0].affinity is not None:
            homeless = None
            for index, waiter in enumerate(itertools.islice(self.waiters, NUM_LOOKED_AT)):
                home = None if waiter.affinity is None else self._homes.of(waiter.affinity)
                if home is None or home not in usable:
                    homeless = index if homeless is None else homeless
                elif home.has_room and home not in waiter.tried:
                    return self._take_at(index), home
            start = homeless or 0
        for index, waiter in enumerate(itertools.islice(self.waiters, start, start + NUM_LOOKED_AT), start):
            member = pick(waiter.tried, waiter.affinity)
            if member is not None:
                return self._take_at(index), member
            if not waiter.tried:  # any server would do, and none has room
                return None
        return None

    def _take_at(self, index: int) -> Waiter:
        waiter = self.waiters[index]
        del self.waiters[index]
        return waiter
