"""
The servers of one client in all processes: where their addresses come from, and which of several workers this is.

Makes the pool of each event loop. Knows nothing of requests.
"""

from __future__ import annotations

from typing import Literal

from nemo_llm_stage.client.clock import Clock
from nemo_llm_stage.client.endpoints.address import Endpoint
from nemo_llm_stage.client.endpoints.follow import Follower, problem_of
from nemo_llm_stage.client.endpoints.pool import EndpointPool
from nemo_llm_stage.client.endpoints.share import ALONE, WorkerPlace, shares_of
from nemo_llm_stage.client.endpoints.source import BaseURL, source_of
from nemo_llm_stage.client.endpoints.state import EndpointPolicy
from nemo_llm_stage.client.governor.governor import START_LIMIT
from nemo_llm_stage.client.governor.poller import Get, Poller
from nemo_llm_stage.client.limit import Limit, LoopLocal
from nemo_llm_stage.errors import ConfigError


class Servers:
    """
    The servers of one client. Can be pickled.

    Args:
        base_url: What the user wrote.
        max_per_endpoint: Most requests in flight at each server, over all workers; "auto" adapts the limit of each.

    Attributes:
        is_auto: Whether the limits adapt.
        source: Where the addresses come from.
        place: Which of several workers this is.

    Raises:
        ConfigError: `base_url` cannot be an address.
    """

    def __init__(self, base_url: BaseURL, max_per_endpoint: int | Literal["auto"]) -> None:
        self.source = source_of(base_url)
        self.place = ALONE
        self.is_auto = max_per_endpoint == "auto"
        self._max_per_endpoint = START_LIMIT if max_per_endpoint == "auto" else max_per_endpoint

    def at_start(self) -> tuple[Endpoint, ...]:
        """
        Return the addresses as they are now. May block.

        Raises:
            ConfigError: There is none, or they cannot be read.
        """
        endpoints = self.source.read()
        if not endpoints:
            raise ConfigError(f"{self.source.describe()}, which base_url means, names no server.")
        return endpoints

    def total_limit(self, place: WorkerPlace) -> int:
        """Return the most requests that the worker in this place has in flight, at the servers that there are now."""
        named = [endpoint.base_url for endpoint in self.at_start()]
        shares = shares_of(named, ALONE if self.source.is_own else place)
        return sum(share.of(self._max_per_endpoint * named.count(url)) for url, share in shares.items())

    def urls_of(self, place: WorkerPlace) -> tuple[str, ...]:
        """Return the base URLs of the servers that the worker in this place asks, as they are now. May block."""
        return tuple(shares_of((endpoint.base_url for endpoint in self.at_start()), place))

    def make_pool(self, clock: Clock, policy: EndpointPolicy, get: Get) -> EndpointPool:
        """
        Return a pool for the running event loop, which follows the changes of the addresses.

        Args:
            clock: Time.
            policy: When a server rests.
            get: Sends a GET; only where the limits adapt.
        """
        endpoints = self.source.read()
        poller = Poller(get, clock, lambda: pool.num_waiting) if self.is_auto else None
        govern = None if poller is None else poller.govern
        pool = EndpointPool(
            self.source, endpoints, self._max_per_endpoint, clock, policy, worker=self.place, govern=govern
        )
        pool.on_close = None if poller is None else poller.close
        pool.problem = problem_of(self.source, endpoints)
        if self.source.poll_s is not None:
            pool.on_tick = Follower(self.source, pool, endpoints, policy.poll_s or self.source.poll_s).tick
        return pool


def pools_of(limits: LoopLocal[Limit] | None) -> list[EndpointPool]:
    """Return the pools among the limits of a client's event loops."""
    return [] if limits is None else [limit for limit in limits.values() if isinstance(limit, EndpointPool)]
