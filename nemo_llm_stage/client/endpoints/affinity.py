"""
Requests that begin alike prefer one server, whose prefix cache then holds their beginning.

Knows groups as numbers; knows nothing of prompts.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_llm_stage.client.endpoints.member import Member

MAX_LOAD = 1.25
"""A server takes requests as their home up to so many times the mean load. Source: Mirrokni, Thorup and Zadimoghaddam,
"Consistent Hashing with Bounded Loads", 2018."""

MAX_GROUPS = 4096
"""Cache size: groups whose home is remembered."""

_64_BITS = (1 << 64) - 1

AFFINITY: ContextVar[int | None] = ContextVar("AFFINITY", default=None)
"""The group of the running task's requests; None for none."""


@contextmanager
def affinity(group: int | None) -> Iterator[None]:
    """Let the requests that the block sends prefer the server of their group; see `AFFINITY`."""
    token = AFFINITY.set(group)
    try:
        yield
    finally:
        AFFINITY.reset(token)


class Homes:
    """
    The server of each group, chosen at its first request: by rendezvous hashing among those that are not busy.

    Attributes:
        are_used: Whether any request had a group.
    """

    def __init__(self) -> None:
        self.are_used = False
        self._homes: OrderedDict[int, Member] = OrderedDict()

    def of(self, group: int) -> Member | None:
        """Return the server of `group`; None where it has none yet."""
        return self._homes.get(group)

    def pick(self, group: int, usable: Sequence[Member]) -> Member | None:
        """
        Return the home of `group`, or where that is full the least loaded server; None where all are full.

        Args:
            group: A group that has no home among `usable` gets one.
            usable: The servers to choose from.
        """
        free = [member for member in usable if member.has_room]
        if not free:
            return None
        home = self._homes.get(group)
        if home is None or home not in usable:
            home = self._choose(group, usable, free)
        if home in free:
            return home
        return min(free, key=lambda member: member.load)

    def _choose(self, group: int, usable: Sequence[Member], free: Sequence[Member]) -> Member:
        mean = sum(member.limit.in_flight + 1 for member in usable) / sum(
            member.limit.max_concurrent_requests for member in usable
        )
        calm = [member for member in free if member.load <= MAX_LOAD * mean] or free
        home = max(calm, key=lambda member: _score(group, member))
        self._homes[group] = home
        self.are_used = True
        self._homes.move_to_end(group)
        if len(self._homes) > MAX_GROUPS:
            self._homes.popitem(last=False)
        return home


def _score(group: int, member: Member) -> float:
    """Rendezvous hashing with weights: a server's chance is its limit's share of all limits."""
    return -member.limit.max_concurrent_requests / math.log((_mixed(group, member.seed) + 1) / 0x1_0000_0001)


def _mixed(group: int, seed: int) -> int:
    """
    Return 32 bits that depend on all bits of both.

    A checksum would not do: those of two seeds differ by the same bits for each group, so that one server of three
    gets half of the groups. Source: the finalizer of SplitMix64, Steele, Lea and Flood, OOPSLA 2014.
    """
    mixed = (group ^ seed * 0x9E3779B97F4A7C15) & _64_BITS
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _64_BITS
    return (mixed ^ mixed >> 31) & 0xFFFF_FFFF
