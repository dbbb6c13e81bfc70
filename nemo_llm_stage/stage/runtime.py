"""
What a stage holds open in one process: the loop, the client ready on it, and the scheduler.

Made at the stage's first use and closed with it. Knows nothing of prompts, values or tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from nemo_llm_stage.client.llm_client import AsyncLLMClient
from nemo_llm_stage.core import RowResult
from nemo_llm_stage.stage.ask import Asker, Row
from nemo_llm_stage.stage.health import Health
from nemo_llm_stage.stage.loop import LoopThread
from nemo_llm_stage.stage.query import CompletionStore
from nemo_llm_stage.stage.scheduler import Scheduler

TROUBLE_SHOWN_S = 90.0
"""Rows that are put off come back after at most 60 s; a trouble older than this is over."""

OnDone = Callable[[RowResult], None]


class Runtime:
    """
    Runs rows on an event loop of its own until `close`.

    Args:
        client: Set up here.
        make_asker: Makes what asks a row, told of what is known of the server.
    """

    def __init__(self, client: AsyncLLMClient, make_asker: Callable[[Health], Asker]) -> None:
        client.setup()
        self.loop = LoopThread()
        self._client = client
        self._health = Health()
        self._asker = make_asker(self._health)
        self._scheduler = self.loop.run(self._make_scheduler())

    @property
    def num_in_flight(self) -> int:
        """Requests in flight now."""
        return self._limit.in_flight

    @property
    def num_started(self) -> int:
        """Rows started since there is a runtime."""
        return self._scheduler.num_started

    @property
    def trouble(self) -> str | None:
        """The error for which a row was put off of late; None where all is well."""
        trouble = self._health.trouble
        if trouble is None or time.monotonic() - trouble.at_monotonic_s > TROUBLE_SHOWN_S:
            return None
        return trouble.error

    async def _make_scheduler(self) -> Scheduler:
        self._limit = self._client.limit
        return Scheduler(self._limit)

    async def ask_all(
        self, rows: Sequence[Row], store: CompletionStore | None, on_done: OnDone | None
    ) -> list[RowResult]:
        """Return the rows' results in order; runs on `loop`."""

        async def ask(row: Row) -> RowResult:
            return await self._asker.ask(row, store)

        return await self._scheduler.run(rows, ask, on_done)

    def close(self) -> None:
        """Close the client's connections and stop the loop."""
        self.loop.close(self._client.aclose)
