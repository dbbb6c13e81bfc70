"""
What a stage holds open in one process: the event loop, the clients, and the scheduler.

Made at the stage's first use and closed with it. Knows nothing of prompts, values or tables.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from nemo_llm_stage.client.endpoint_status import merge_endpoints
from nemo_llm_stage.client.endpoints.affinity import AFFINITY
from nemo_llm_stage.client.llm_client import AsyncLLMClient
from nemo_llm_stage.client.throttle import OPEN, Allowance, Spending, Throttle
from nemo_llm_stage.core import Outcome
from nemo_llm_stage.errors import ConfigError, LLMStageError
from nemo_llm_stage.rows.column import Column, Row
from nemo_llm_stage.rows.generate import ColumnRunner
from nemo_llm_stage.rows.health import Health
from nemo_llm_stage.rows.memo import Memo
from nemo_llm_stage.rows.query import GIVE_UP_AFTER_S, CompletionStore, Querier
from nemo_llm_stage.rows.row import Known, RowRunner
from nemo_llm_stage.stage.loop import LoopThread
from nemo_llm_stage.stage.order import RowPlan
from nemo_llm_stage.stage.scheduler import Scheduler, SchedulerStatistics
from nemo_llm_stage.stage.status import Outage, StageStatus

OnDone = Callable[[Outcome], None]

QUIET_LOOK_S = 0.02
"""Seconds between two looks whether anything is in flight yet, at the end of a run."""


class Runtime:
    """
    Runs rows on an event loop of its own until `close`.

    Args:
        columns: What a row generates.
        uses: Output column → the output columns that its prompt uses.
        client_of: Output column → its client, in the order of first use. Set up here.

    Attributes:
        is_checked: Whether the servers are known to take the keys and models.

    Raises:
        ConfigError: A client cannot be set up, e.g. because a key is missing.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        uses: Mapping[str, Sequence[str]],
        client_of: Mapping[str, AsyncLLMClient],
    ) -> None:
        self._clients = unique(client_of.values())
        for client in self._clients:
            _set_up(client)
        self._healths = [Health(client.clock) for client in self._clients]
        places = {id(client): place for place, client in enumerate(self._clients)}
        memo = Memo()
        runners = []
        for column in columns:
            scope = places[id(client_of[column.name])]
            querier = Querier(
                client_of[column.name],
                give_up_after_s=column.give_up_after_s,
                health=self._healths[scope],
                memo=memo if column.deduplicate else None,
            )
            runners.append(ColumnRunner(column, querier, scope=scope))
        self._give_up_after_s = min(
            GIVE_UP_AFTER_S if column.give_up_after_s is None else column.give_up_after_s for column in columns
        )
        self._runner = RowRunner(runners, uses)
        self.loop = LoopThread()
        first = unique(client for name, client in client_of.items() if not uses[name])
        self._scheduler = self.loop.run(self._make_scheduler(first))
        self._throttle = OPEN
        self.is_checked = False

    def submit(
        self,
        rows: Sequence[Row],
        known: Sequence[Known] | None,
        store: CompletionStore | None,
        on_done: OnDone | None,
        on_start: Callable[[], None] | None = None,
        plan: RowPlan | None = None,
    ) -> concurrent.futures.Future[list[Outcome]]:
        """Start `rows`, as `plan` says if given; see `Stage.submit`."""
        return self.loop.submit(self._run(rows, known, store, on_done, on_start, plan))

    async def _run(
        self,
        rows: Sequence[Row],
        known: Sequence[Known] | None,
        store: CompletionStore | None,
        on_done: OnDone | None,
        on_start: Callable[[], None] | None,
        plan: RowPlan | None,
    ) -> list[Outcome]:
        run_row = self._runner.run_row
        if known is None and plan is None:
            return await self._scheduler.run(rows, lambda row: run_row(row, store), on_done, on_start)
        places = range(len(rows)) if plan is None else plan.indices

        def run_at(place: int) -> Coroutine[Any, Any, Outcome]:
            if plan is not None:
                AFFINITY.set(plan.groups[place])  # called in a task of the row's own
            return run_row(rows[place], store, None if known is None else known[place])

        outcomes = await self._scheduler.run(places, run_at, on_done, on_start)
        by_place = dict(zip(places, outcomes, strict=True))
        return [by_place[place] for place in range(len(rows))]

    @property
    def num_in_flight(self) -> int:
        """Requests in flight now."""
        return sum(limit.in_flight for limit in self._limits)

    def status(self) -> StageStatus:
        """Return how it stands. May be called from any thread."""
        rows = self._scheduler.statistics()
        num_in_flight = self.num_in_flight
        outage = self._outage()
        endpoints = (status for client in self._clients for status in client.endpoint_statuses())
        return StageStatus(
            num_in_flight=num_in_flight,
            max_in_flight=sum(limit.max_concurrent_requests for limit in self._limits),
            num_retrying=max(0, rows.num_open - num_in_flight - sum(limit.num_waiting for limit in self._limits)),
            outage=outage,
            endpoints=merge_endpoints(endpoints),
        )

    def _outage(self) -> Outage | None:
        troubles = [health.current_trouble for health in self._healths]
        first = min(filter(None, troubles), key=lambda trouble: trouble.since_monotonic_s, default=None)
        if first is None:
            return self._problem()
        to_wall_s = time.time() - self._clients[troubles.index(first)].clock.monotonic()
        since = first.since_monotonic_s + to_wall_s
        return Outage(first.error, since, first.until_monotonic_s + to_wall_s, since + self._give_up_after_s)

    def _problem(self) -> Outage | None:
        problem = next((limit.problem for limit in self._limits if limit.problem is not None), None)
        if problem is None:
            return None
        return Outage(problem.text, problem.since, time.time(), problem.since + self._give_up_after_s)

    def statistics(self) -> SchedulerStatistics:
        """Return how many rows are started, open and waiting."""
        return self._scheduler.statistics()

    @property
    def spending(self) -> Spending:
        """What the requests of all clients took so far."""
        return self._allowance.spending

    def throttle(self, throttle: Throttle) -> None:
        """Hold requests back as `throttle` says. May be called from any thread."""
        if throttle != self._throttle:
            before, self._throttle = self._throttle, throttle
            self.loop.call(lambda: self._follow(throttle, before))

    def when_quiet(self) -> concurrent.futures.Future[None]:
        """See `Stage.when_quiet`."""
        return self.loop.submit(self._wait_until_quiet())

    async def _wait_until_quiet(self) -> None:
        # On the loop itself: it has paused by now, and between two of its steps no answer is half way to its row.
        while self.num_in_flight:  # noqa: ASYNC110 - once, at the end of a run
            await asyncio.sleep(QUIET_LOOK_S)
        await asyncio.sleep(0)

    def _follow(self, throttle: Throttle, before: Throttle) -> None:
        if throttle.grant != before.grant:
            self._allowance.grant(throttle.grant)
        for limit in self._limits:
            if throttle.is_paused != limit.is_paused:
                limit.pause() if throttle.is_paused else limit.resume()
            if throttle.max_concurrent_requests not in (None, before.max_concurrent_requests):
                limit.resize(throttle.max_concurrent_requests)

    async def _make_scheduler(self, first: Sequence[AsyncLLMClient]) -> Scheduler:
        self._limits = [client.limit for client in self._clients]
        self._allowance = Allowance(self._limits)
        for limit in self._limits:
            limit.allowance = self._allowance
        return Scheduler(*(client.limit for client in first))

    def close(self) -> None:
        """Close the clients' connections and stop the loop."""
        self.loop.close(self._close_clients)

    async def _close_clients(self) -> None:
        for client in self._clients:
            await client.aclose()


def unique(clients: Iterable[AsyncLLMClient]) -> list[AsyncLLMClient]:
    """Return each of `clients` once, in order; a user's client need not be hashable."""
    return list({id(client): client for client in clients}.values())


def _set_up(client: AsyncLLMClient) -> None:
    try:
        client.setup()
    except LLMStageError:
        raise
    except Exception as error:  # the openai SDK has one of its own for a key that is missing
        raise ConfigError(f"{type(client).__name__} cannot be set up: {error}") from error


class LocalRuntime:
    """
    The runtime of a stage in this process, opened at first use.

    A pickled or copied one is closed, and so is the one that a forked child inherits: threads do not survive a fork.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.current: Runtime | None = None
        _local_runtimes.add(self)

    def open(self, make: Callable[[], Runtime]) -> Runtime:
        """Return the open runtime; `make` one where there is none."""
        with self._lock:
            if self.current is None:
                self.current = make()
            return self.current

    def when_quiet(self) -> concurrent.futures.Future[None]:
        """See `Stage.when_quiet`; one that is closed is quiet."""
        runtime = self.current
        if runtime is not None:
            return runtime.when_quiet()
        quiet: concurrent.futures.Future[None] = concurrent.futures.Future()
        quiet.set_result(None)
        return quiet

    def close(self) -> None:
        """Close the runtime. Safe to call twice."""
        with self._lock:
            runtime, self.current = self.current, None
        if runtime is not None:
            runtime.close()

    def forget(self) -> None:
        """Start closed in a forked child."""
        if self.current is not None:
            _parents_runtimes.append(self.current)
        self._lock, self.current = threading.Lock(), None

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalRuntime, ()


_local_runtimes: weakref.WeakSet[LocalRuntime] = weakref.WeakSet()
_parents_runtimes: list[Runtime] = []
"""Kept for ever in a forked child: collecting them would close what the parent still uses."""


def _forget_runtimes() -> None:
    for runtime in list(_local_runtimes):
        runtime.forget()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_runtimes)
