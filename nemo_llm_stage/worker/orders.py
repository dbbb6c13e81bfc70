"""
What the driver tells a worker with each call: the whole of it each time, so that a lost call loses no order.

Knows nothing of who gives the orders, or of how a worker follows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nemo_llm_stage.client.throttle import OPEN, Spending, Throttle
from nemo_llm_stage.worker.rowset import RowSet


@dataclass(frozen=True, slots=True)
class Orders:
    """
    How a worker should run from now on.

    Attributes:
        throttle: How it holds requests back.
        is_draining: Send nothing more, wait for what is in flight, commit the partitions that are whole then, and
            abandon the others.
        is_overdue: While draining, wait no longer for what is in flight.
        gives_back: Give the rows that are not sent back, for workers that have nothing to do.
        abandoned: Numbers of tasks that others have now; what is left of them here is given up.
        dropped: Number of a task → rows of it that another worker has answered.
        overdue_s: Base URL of a slow server → seconds after which the requests in flight there are to be told.
        servers: Base URLs of the servers that the job has started and that are healthy; None where it starts none.
    """

    throttle: Throttle = OPEN
    is_draining: bool = False
    is_overdue: bool = False
    gives_back: bool = False
    abandoned: frozenset[int] = frozenset()
    dropped: Mapping[int, RowSet] = field(default_factory=dict)
    overdue_s: Mapping[str, float] = field(default_factory=dict)
    servers: tuple[str, ...] | None = None


NO_ORDERS = Orders()


@dataclass(frozen=True, slots=True)
class Need:
    """
    What a worker did and could do, as far as orders hang on it.

    Attributes:
        num_waiting: Rows that it has and has not started.
        num_in_flight: Requests in flight.
        num_retrying: Rows that wait to be sent again.
        spending: Since it began.
        rows: A few rows that it has just finished, as short texts; see `nemo_llm_stage.worker.samples`.
    """

    num_waiting: int = 0
    num_in_flight: int = 0
    num_retrying: int = 0
    spending: Spending = field(default_factory=Spending)
    rows: tuple[dict[str, Any], ...] = ()


class Control(Protocol):
    """Gives the workers of a run their orders. Called in the driver's thread."""

    @property
    def is_draining(self) -> bool:
        """Whether the run ends as soon as the workers have drained."""

    def orders_of(self, worker: str, need: Need) -> Orders:
        """Return the orders of a worker whose last status said `need`, as far as they are not about tasks."""

    def forget(self, worker: str) -> None:
        """Note that a worker is dead: what it was granted and has not reported is spent or lost."""


class _NoControl:
    """Lets every worker run as it was made."""

    is_draining = False

    def orders_of(self, worker: str, need: Need) -> Orders:
        """Return no orders."""
        return NO_ORDERS

    def forget(self, worker: str) -> None:
        """See `Control`."""


NO_CONTROL: Control = _NoControl()
