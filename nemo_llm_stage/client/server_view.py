"""
The state of a client's servers, and how workers share them.

A client that does not count tells nothing. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.client.endpoints.share import ALONE, WorkerPlace

if TYPE_CHECKING:
    from nemo_llm_stage.client.endpoints.overdue import Overdue


class ServerView:
    """Hooks of a client that has several servers, or counts what they do."""

    max_concurrent_requests: int

    def take_place(self, place: WorkerPlace) -> None:
        """Be the client of one of several workers that share the servers. Called before anything is sent."""

    def total_limit(self, place: WorkerPlace = ALONE) -> int:
        """Return the most requests that the worker in this place has in flight at once."""
        return self.max_concurrent_requests

    def endpoint_statuses(self) -> tuple[EndpointStatus, ...]:
        """Return how each server stands; nothing where the client does not count. Can be called from any thread."""
        return ()

    def server_urls(self, place: WorkerPlace = ALONE) -> tuple[str, ...]:
        """Return the base URLs of the servers that the worker in this place asks, as far as known; may block."""
        return ()

    def tell_servers(self, urls: Sequence[str]) -> None:
        """Take the addresses of the servers that the job starts, as they are from now on."""

    def overdue(self, after_s: Mapping[str, float]) -> list[Overdue]:
        """Return the requests in flight for longer than it says for their server; none where the client cannot tell."""
        return []
