"""
What the driver tells a worker with each call: the whole of it each time, so that a lost call loses no order.

Knows nothing of who gives the orders, or of how a worker follows them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from nemo_llm_stage.client.throttle import OPEN, Spending, Throttle


@dataclass(frozen=True, slots=True)
class Orders:
    """
    How a worker should run from now on.

    Attributes:
        throttle: How it holds requests back.
    """

    throttle: Throttle = OPEN


NO_ORDERS = Orders()


@dataclass(frozen=True, slots=True)
class Need:
    """
    What a worker did and could do, as far as orders hang on it.

    Attributes:
        num_waiting: Rows that it has and has not started.
        num_in_flight: Requests in flight.
        spending: Since it began.
    """

    num_waiting: int = 0
    num_in_flight: int = 0
    spending: Spending = field(default_factory=Spending)


class Control(Protocol):
    """Gives the workers of a run their orders. Called in the driver's thread."""

    def orders_of(self, worker: str, need: Need) -> Orders:
        """Return the orders of a worker whose last status said `need`."""

    def forget(self, worker: str) -> None:
        """Note that a worker is dead: what it was granted and has not reported is spent or lost."""


class _NoControl:
    """Lets every worker run as it was made."""

    def orders_of(self, worker: str, need: Need) -> Orders:
        """Return no orders."""
        return NO_ORDERS

    def forget(self, worker: str) -> None:
        """See `Control`."""


NO_CONTROL: Control = _NoControl()
