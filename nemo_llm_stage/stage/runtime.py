"""
What a stage holds open in one process: the loop, the clients ready on it, and the scheduler.

Made at the stage's first use and closed with it. Knows nothing of prompts, values or tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from nemo_llm_stage.client.llm_client import AsyncLLMClient
from nemo_llm_stage.core import Outcome
from nemo_llm_stage.errors import ConfigError, LLMStageError
from nemo_llm_stage.rows.ask import Row
from nemo_llm_stage.rows.health import Health
from nemo_llm_stage.rows.query import CompletionStore
from nemo_llm_stage.rows.row import Known, RowAsker
from nemo_llm_stage.stage.loop import LoopThread
from nemo_llm_stage.stage.scheduler import Scheduler

TROUBLE_SHOWN_S = 90.0
"""Rows that are put off come back after at most 60 s; a trouble older than this is over."""

OnDone = Callable[[Outcome], None]


class Runtime:
    """
    Runs rows on an event loop of its own until `close`.

    Args:
        clients: Set up here. Those that a row's first requests go to come first.
        num_first: How many those are.
        asker: Asks a row.
        healths: What is known of the servers, of each column.

    Raises:
        ConfigError: A client cannot be set up, e.g. for want of a key.
    """

    def __init__(
        self, clients: Sequence[AsyncLLMClient], num_first: int, asker: RowAsker, healths: Sequence[Health]
    ) -> None:
        for client in clients:
            _set_up(client)
        self.loop = LoopThread()
        self._clients = clients
        self._asker = asker
        self._healths = healths
        self._scheduler = self.loop.run(self._make_scheduler(num_first))

    @property
    def num_in_flight(self) -> int:
        """Requests in flight now."""
        return sum(limit.in_flight for limit in self._limits)

    @property
    def num_started(self) -> int:
        """Rows started since there is a runtime."""
        return self._scheduler.num_started

    @property
    def trouble(self) -> str | None:
        """The error for which a row was put off of late; None where all is well."""
        troubles = [health.trouble for health in self._healths if health.trouble is not None]
        if not troubles:
            return None
        latest = max(troubles, key=lambda trouble: trouble.at_monotonic_s)
        return latest.error if time.monotonic() - latest.at_monotonic_s <= TROUBLE_SHOWN_S else None

    async def _make_scheduler(self, num_first: int) -> Scheduler:
        self._limits = [client.limit for client in self._clients]
        return Scheduler(*self._limits[:num_first])

    async def ask_all(
        self,
        rows: Sequence[Row],
        known: Sequence[Known] | None,
        store: CompletionStore | None,
        on_done: OnDone | None,
    ) -> list[Outcome]:
        """Return the rows' outcomes in order; runs on `loop`."""
        if known is None:

            async def ask(row: Row) -> Outcome:
                return await self._asker.ask(row, store)

            return await self._scheduler.run(rows, ask, on_done)

        async def ask_unknown(pair: tuple[Row, Known]) -> Outcome:
            return await self._asker.ask(pair[0], store, pair[1])

        return await self._scheduler.run(list(zip(rows, known, strict=True)), ask_unknown, on_done)

    def close(self) -> None:
        """Close the clients' connections and stop the loop."""
        self.loop.close(self._close_clients)

    async def _close_clients(self) -> None:
        for client in self._clients:
            await client.aclose()


def _set_up(client: AsyncLLMClient) -> None:
    try:
        client.setup()
    except LLMStageError:
        raise
    except Exception as error:  # the openai SDK has one of its own for a key that is missing
        raise ConfigError(f"{type(client).__name__} cannot be set up: {error}") from error
