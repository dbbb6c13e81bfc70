"""
Keeps a pool of servers up to date with where their addresses come from.

Reads in a thread, so that a slow disk or name server holds nothing up.
"""

from __future__ import annotations

import asyncio
import logging
import time

from nemo_llm_stage.client.endpoints.address import Endpoint
from nemo_llm_stage.client.endpoints.pool import EndpointPool
from nemo_llm_stage.client.endpoints.source import Source
from nemo_llm_stage.client.limit import Problem
from nemo_llm_stage.errors import ConfigError

logger = logging.getLogger(__name__)


class Follower:
    """
    Reads the addresses again and again while the pool is in use, and tells the pool of changes.

    Args:
        source: Where they come from. While it cannot be read, the addresses stay as they were.
        pool: Likewise.
        endpoints: As they were read last.
        poll_s: Seconds between two reads.
    """

    def __init__(self, source: Source, pool: EndpointPool, endpoints: tuple[Endpoint, ...], poll_s: float) -> None:
        self._source = source
        self._pool = pool
        self._endpoints = endpoints
        self._poll_s = poll_s
        self._read_at_s = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._error = ""

    def tick(self) -> None:
        """Read the addresses, if it is time and they are not being read."""
        loop = asyncio.get_running_loop()
        if (self._reading is None or self._reading.done()) and loop.time() - self._read_at_s >= self._poll_s:
            self._read_at_s = loop.time()
            self._reading = loop.create_task(self._read())

    async def _read(self) -> None:
        try:
            endpoints = await asyncio.to_thread(self._source.read)
        except ConfigError as error:
            if str(error) != self._error:
                logger.warning("the list of servers stays as it was: %s", error)
            self._error = str(error)
            return
        self._error = ""
        if endpoints != self._endpoints:
            self._tell(endpoints)

    def _tell(self, endpoints: tuple[Endpoint, ...]) -> None:
        before, self._endpoints = self._endpoints, endpoints
        for endpoint in set(endpoints) - set(before):
            logger.info("%s has joined", endpoint.base_url)
        for endpoint in set(before) - set(endpoints):
            logger.info("%s has left", endpoint.base_url)
        self._pool.problem = problem_of(self._source, endpoints)
        if self._pool.problem is not None:
            logger.warning("%s; rows wait for one", self._pool.problem.text)
        self._pool.update(endpoints)


def problem_of(source: Source, endpoints: tuple[Endpoint, ...]) -> Problem | None:
    """Return why no request can be sent; None where there is a server."""
    return None if endpoints else Problem(f"no_server: {source.describe()} names no server", time.time())
