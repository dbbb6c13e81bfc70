"""How a stage stands in one process, for people to look at. Knows counts and times."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nemo_llm_stage.client.endpoint_status import EndpointStatus


@dataclass(frozen=True, slots=True)
class Outage:
    """
    Why requests wait to be sent again. Times are unix seconds.

    Attributes:
        error: Of the last one that was put off, as ``kind: message``.
        since: When the first of them was.
        next_try_at: When the next one is sent.
        give_up_at: When the first of them fails its row, if it is not answered before.
    """

    error: str
    since: float
    next_try_at: float
    give_up_at: float


@dataclass(frozen=True, slots=True)
class OrderStatistics:
    """
    What the order of rows has saved.

    Attributes:
        num_windows: Windows that were looked at.
        num_ordered: Windows that were sent in another order.
        shared: Share of the prompt bytes of a mean window looked at, 0 to 1, that follow a prompt with the same
            beginning in the order that was sent.
        shared_as_given: The same for the order as given.
    """

    num_windows: int = 0
    num_ordered: int = 0
    shared: float = 0.0
    shared_as_given: float = 0.0

    @property
    def words(self) -> str:
        """Return for people in which order rows are sent; nothing where nobody has looked."""
        if not self.num_windows:
            return ""
        if not self.num_ordered:
            return "as in the input: another order would share no more of the prompts"
        share = self.num_ordered / self.num_windows
        times = "" if share == 1 else f" in {share:.0%} of the looks at them"
        return (
            f"grouped by the beginning of their prompts{times}: at least {self.shared:.0%} of the prompt text follows "
            f"a prompt that begins with it, {self.shared_as_given:.0%} in the order of the input"
        )

    def __add__(self, other: OrderStatistics) -> OrderStatistics:
        """Return what both have seen."""
        num = self.num_windows + other.num_windows
        if not num:
            return self
        mine, its = self.num_windows / num, other.num_windows / num
        return OrderStatistics(
            num,
            self.num_ordered + other.num_ordered,
            mine * self.shared + its * other.shared,
            mine * self.shared_as_given + its * other.shared_as_given,
        )


def sum_orders(seen: Iterable[OrderStatistics]) -> OrderStatistics:
    """Return what all have seen together."""
    return sum(seen, OrderStatistics())


@dataclass(frozen=True, slots=True)
class StageStatus:
    """
    How a stage stands.

    Attributes:
        num_in_flight: Requests in flight.
        max_in_flight: Most requests in flight at once.
        num_waiting: Rows that are started and wait for a permit.
        num_retrying: Rows that are started and neither in flight nor waiting for a permit; most wait for a retry.
        outage: Why requests wait; None where none has waited in the last seconds.
        endpoints: The servers, as far as the clients count what they send.
        order: What the order in which rows are sent has saved.
    """

    num_in_flight: int = 0
    max_in_flight: int = 0
    num_retrying: int = 0
    outage: Outage | None = None
    endpoints: tuple[EndpointStatus, ...] = ()
    num_waiting: int = 0
    order: OrderStatistics = OrderStatistics()
