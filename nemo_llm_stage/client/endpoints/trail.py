"""
Where the running task's request has failed so far, and whether the server or the request is to blame for a failure.

Knows errors and servers; knows nothing of limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from nemo_llm_stage.client.endpoints.member import Lease, Member
from nemo_llm_stage.errors import (
    ConnectionDroppedError,
    ConnectionFailedError,
    RequestTimeoutError,
    TransientError,
)

MAX_RECALLS = 2
"""A request is taken from a silent server at most so often: it may itself be what takes long."""

_OUTAGE_STATUSES = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class Trail:
    """
    The failures of one request.

    Attributes:
        tried: The servers where it has failed, oldest first.
        num_recalls: How often it was taken from a silent server.
    """

    tried: tuple[Member, ...] = ()
    num_recalls: int = 0

    @property
    def is_final(self) -> bool:
        """Whether it stays at its next server however long that takes."""
        return self.num_recalls >= MAX_RECALLS

    def after(self, lease: Lease, others: list[Member]) -> Trail:
        """
        Return the trail with one more failure.

        Args:
            lease: The permit under which it failed.
            others: The servers where it has not failed. Where there is none, all but the last may be tried again.
        """
        tried = (*self.tried, lease.member) if others else (lease.member,)
        return Trail(tried, self.num_recalls + lease.is_recalled)


NOWHERE = Trail()

AVOIDED: ContextVar[str | None] = ContextVar("AVOIDED", default=None)
"""Base URL of a server that the running task's requests go to last; None for none."""


def choices(tried: Sequence[Member], usable: Sequence[Member]) -> Sequence[Member]:
    """
    Return the servers for a request that has failed at others.

    Args:
        tried: Where it has failed.
        usable: The servers that get requests now: returned where all of them are tried. Those of other workers are not
            among them while one of this worker's own is well, or the request would come on top of their limits.
    """
    return [member for member in usable if member not in tried] or usable


def is_fault(error: TransientError) -> bool:
    """Whether a failure may be the server's: no connection, or a lost one, no answer in time, only a gateway's."""
    if isinstance(error, ConnectionFailedError | ConnectionDroppedError | RequestTimeoutError):
        return True
    return error.status in _OUTAGE_STATUSES and not error.is_overload


def is_blameless(error: TransientError, lease: Lease) -> bool:
    """Whether a failure is no sign against the request. A timeout is one, unless the server answers nobody."""
    is_slow = isinstance(error, RequestTimeoutError) and not lease.is_recalled
    return is_fault(error) and not (is_slow and lease.member.breaker.is_usable)
