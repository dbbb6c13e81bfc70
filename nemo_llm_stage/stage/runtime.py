"""
What a stage holds open in one process: the event loop, the clients, and the scheduler.

Made at the stage's first use and closed with it. Knows nothing of prompts, values or tables.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nemo_llm_stage.client.endpoint_status import merge_endpoints
from nemo_llm_stage.client.endpoints.affinity import AFFINITY
from nemo_llm_stage.client.endpoints.trail import AVOIDED
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
from nemo_llm_stage.stage.hand import Hand, OverdueRow, portable
from nemo_llm_stage.stage.loop import LoopThread
from nemo_llm_stage.stage.order import RowPlan
from nemo_llm_stage.stage.scheduler import Scheduler, SchedulerStatistics
from nemo_llm_stage.stage.status import Outage, StageStatus

OnDone = Callable[[Outcome], None]

QUIET_LOOK_S = 0.02
"""Seconds between two looks whether anything is in flight yet, at the end of a run."""

GIVEN_BACK: Outcome = {}
"""Stands for the outcome of a row that was taken back."""


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

        def make_runner(memo: Memo | None) -> RowRunner:
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
            return RowRunner(runners, uses)

        self._give_up_after_s = min(
            GIVE_UP_AFTER_S if column.give_up_after_s is None else column.give_up_after_s for column in columns
        )
        self._runner = make_runner(Memo())
        self._second_runner = make_runner(None)  # for rows whose very request is in flight
        self._num_columns = len(columns)
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
        hand: Hand | None = None,
        avoids: str | None = None,
    ) -> concurrent.futures.Future[list[Outcome]]:
        """Start `rows`, as `plan` says if given; see `Stage.submit`."""
        if avoids is not None:
            return self.loop.submit(self._run_again(rows, known, store, on_done, on_start, avoids))
        return self.loop.submit(self._run(rows, known, store, on_done, on_start, plan, hand))

    async def _run_again(
        self,
        rows: Sequence[Row],
        known: Sequence[Known] | None,
        store: CompletionStore | None,
        on_done: OnDone | None,
        on_start: Callable[[], None] | None,
        avoids: str,
    ) -> list[Outcome]:
        def run_at(place: int) -> Coroutine[Any, Any, Outcome]:
            AVOIDED.set(avoids)  # in a task of the row's own
            return self._second_runner.run_row(rows[place], store, None if known is None else known[place])

        return await self._scheduler.run(range(len(rows)), run_at, on_done, on_start)

    async def _run(
        self,
        rows: Sequence[Row],
        known: Sequence[Known] | None,
        store: CompletionStore | None,
        on_done: OnDone | None,
        on_start: Callable[[], None] | None,
        plan: RowPlan | None,
        hand: Hand | None,
    ) -> list[Outcome]:
        run_row = self._runner.run_row
        if known is None and plan is None and hand is None:
            return await self._scheduler.run(rows, lambda row: run_row(row, store), on_done, on_start)
        places = range(len(rows)) if plan is None else plan.indices

        def run_at(place: int) -> Coroutine[Any, Any, Outcome]:
            if plan is not None:
                AFFINITY.set(plan.groups[place])  # called in a task of the row's own
            return run_row(rows[place], store, None if known is None else known[place])

        outcomes = await self._scheduler.run(places, run_at, on_done, on_start, hand)
        if plan is not None:
            by_place = dict(zip(places, outcomes, strict=True))
            outcomes = [by_place[place] for place in range(len(rows))]
        return [outcome or GIVEN_BACK for outcome in outcomes]

    def take_back(self) -> None:
        """Take back what was submitted with a hand and is not sent; most of it is in the hands then."""
        self.loop.run(self._take_back())

    async def _take_back(self) -> None:
        self._scheduler.take_back(drops_waiting=self._num_columns == 1)
        await asyncio.sleep(0)  # rows whose wait was cancelled end in their own tasks
        await asyncio.sleep(0)

    def overdue(self, after_s: Mapping[str, float], max_num: int) -> list[OverdueRow]:
        """Return rows with a hand in flight for longer than this says for their server, the oldest, so many at most."""
        return self.loop.run(self._overdue(after_s, max_num))

    async def _overdue(self, after_s: Mapping[str, float], max_num: int) -> list[OverdueRow]:
        found = [one for client in self._clients for one in client.overdue(after_s)]
        row_of = self._runner.rows_by_task()
        rows: dict[asyncio.Task[Any], OverdueRow] = {}
        for one in sorted(found, key=lambda one: -one.age_s):
            task = row_of.get(one.task, one.task)
            place = None if task in rows or len(rows) == max_num else self._scheduler.place_of(task)
            if place is not None:
                hand, at = place
                known = portable(self._runner.finished(task))
                hand.told[at] = known.keys()
                rows[task] = OverdueRow(hand, at, one.url, one.age_s, known, self._num_columns - len(known))
        return list(rows.values())

    def drop(self, hand: Hand, places: Collection[int]) -> None:
        """Cancel rows in flight that another worker has answered; their outcomes are empty."""
        self.loop.call(lambda: self._drop(hand, places))

    def _drop(self, hand: Hand, places: Collection[int]) -> None:
        for task, place in self._scheduler.drop(hand, places):
            told = hand.told.get(place, ())
            had = self._runner.finished(task)
            hand.dropped[place] = {name: result for name, result in had.items() if name not in told}

    @property
    def num_in_flight(self) -> int:
        """Requests in flight now."""
        return sum(limit.in_flight for limit in self._limits)

    def status(self) -> StageStatus:
        """Return how it stands. May be called from any thread."""
        rows = self._scheduler.statistics()
        num_in_flight = self.num_in_flight
        outage = self._outage()
        num_waiting = sum(limit.num_waiting for limit in self._limits)
        endpoints = (
            replace(status, group=group) if group else status
            for group, client in enumerate(self._clients)
            for status in client.endpoint_statuses()
        )
        return StageStatus(
            num_in_flight=num_in_flight,
            max_in_flight=sum(limit.max_concurrent_requests for limit in self._limits),
            num_waiting=num_waiting,
            num_retrying=max(0, rows.num_open - num_in_flight - num_waiting),
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
