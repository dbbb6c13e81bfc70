"""How a stage stands in one process, for people to look at. Knows counts and times."""

from __future__ import annotations

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
    """

    num_in_flight: int = 0
    max_in_flight: int = 0
    num_retrying: int = 0
    outage: Outage | None = None
    endpoints: tuple[EndpointStatus, ...] = ()
    num_waiting: int = 0
