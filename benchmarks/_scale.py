"""
A thousand workers with a server each, in simulated time, under the real hand-out and the real loop of a run.

A worker here is counts and a queue: it takes tasks, sends rows as slots come free, and answers the driver's calls as a
real one does. Which server rests, and when it is tried again, is the client's own `Breaker`. A row whose server goes
down waits at its worker again; the real client sends it to any other server that is well. Knows nothing of files.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from nemo_llm_stage.client.endpoint_status import EndpointMeter, EndpointStatus
from nemo_llm_stage.client.endpoints.state import Breaker, EndpointPolicy
from nemo_llm_stage.client.throttle import Spending
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.stage.status import Outage, StageStatus
from nemo_llm_stage.worker.calls import Calls
from nemo_llm_stage.worker.dispatch import MAX_TASKS_OPEN
from nemo_llm_stage.worker.host import WorkerStatus
from nemo_llm_stage.worker.orders import NO_ORDERS, Orders
from nemo_llm_stage.worker.rowset import RowSet
from nemo_llm_stage.worker.task import GivenBack, OverdueRequest, PartitionReport, PieceReport, Report, Task

MAKE_FILE_S = 1.0
"""To make a file from the journals of its pieces."""

TOKENS = 200
"""Of an answer: second sends may take a share of those of all."""

STATUS_S = 1.0
"""A worker tells its server's latencies as they were at most so long ago; the real one is asked as rarely."""


MOMENT_S = 0.02
"""Of so many seconds events are sorted at once: a heap of all of them costs more than a row."""

_Event: TypeAlias = tuple[float, int, Callable[..., None], tuple[Any, ...]]


class World:
    """Events in the order of their times: those of this moment are sorted, those of later ones lie in lists."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._numbers = itertools.count()
        self._moment = 0
        self._events: list[_Event] = []
        self._later: dict[int, list[_Event]] = {}
        self._moments: list[int] = []

    def at(self, time_s: float, do: Callable[..., None], *arguments: Any) -> None:
        """Plan an event."""
        event, moment = (time_s, next(self._numbers), do, arguments), int(time_s / MOMENT_S)
        if moment <= self._moment:
            heapq.heappush(self._events, event)
        elif moment in self._later:
            self._later[moment].append(event)
        else:
            self._later[moment] = [event]
            heapq.heappush(self._moments, moment)

    def run(self, until_s: float, news: list[Any]) -> None:
        """Let events happen until there is news, or until `until_s`."""
        pop = heapq.heappop
        while not news:
            events = self._events
            if not events and self._moments and self._moments[0] * MOMENT_S <= until_s:
                self._moment = pop(self._moments)
                self._events = events = self._later.pop(self._moment)
                heapq.heapify(events)
            if not events or events[0][0] > until_s:
                self.now_s = max(self.now_s, until_s)
                return
            self.now_s, _, do, arguments = pop(events)
            do(*arguments)


class SimulatedCalls(Calls[Any]):
    """The driver's pending calls in a world; `world_s` is what the world itself takes, which is not the driver's."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.world_s = 0.0
        self._news: list[Any] = []

    def now_s(self) -> float:
        """See `Calls`."""
        return self.world.now_s

    def add(self, call: Future[Any], about: Any) -> None:
        """See `Calls`."""
        call.add_done_callback(lambda _: self._news.append(about))

    def wait(self, timeout_s: float) -> list[Any]:
        """See `Calls`."""
        started_s = time.perf_counter()
        self.world.run(self.world.now_s + max(0.0, timeout_s), self._news)
        self.world_s += time.perf_counter() - started_s
        news, self._news = self._news, []
        return news


@dataclass(eq=False)
class _Open:
    """A task of a worker: `left` counts the rows that are neither answered nor gone."""

    task: Task
    left: int
    counters: Counters = field(default_factory=Counters)
    dropped: list[int] = field(default_factory=list)
    is_piece: bool = False


class SimulatedWorker:
    """
    One worker and its server; a `nemo_llm_stage.worker.drive.WorkerSlot`.

    Args:
        calls: The driver's.
        num_slots: Requests in flight.
        times_s: Of rows, one after another, over and over.
        speed: Of the server; 0.1 is ten times slower.
    """

    def __init__(
        self, calls: SimulatedCalls, number: int, num_slots: int, times_s: Sequence[float], speed: float
    ) -> None:
        self.num_slots, self.speed, self.is_up = num_slots, speed, True
        self.busy_s = 0.0
        self._calls, self._world = calls, calls.world
        self._times_s = itertools.islice(itertools.cycle(times_s), number * 7919 % len(times_s), None)
        self._url = f"http://server-{number}/v1"
        self._meter = EndpointMeter(self._url)
        self._known: tuple[float, EndpointStatus] = (float("-inf"), self._meter.status())
        self._breaker = Breaker(EndpointPolicy(), 0.0)
        self._queue: deque[tuple[_Open, int]] = deque()
        self._open: dict[int, _Open] = {}
        self._in_flight: dict[tuple[_Open, int], float] = {}
        self._reports: list[Report] = []
        self._overdue: tuple[OverdueRequest, ...] = ()
        self._call: Future[WorkerStatus] | None = None
        self._ahead = self.num_calls = self._num_answers = 0

    def start(self) -> Future[WorkerStatus]:
        """See `WorkerSlot`."""
        return self.collect((), 0, 0.0)

    def stop(self) -> None:
        """See `WorkerSlot`."""

    def collect(
        self, tasks: Sequence[Task], num_rows_ahead: int, timeout_s: float, orders: Orders = NO_ORDERS
    ) -> Future[WorkerStatus]:
        """See `WorkerSlot`."""
        started_s = time.perf_counter()
        self._obey(orders)
        for task in tasks:
            self._take(task)
        self._call, self._ahead = Future(), num_rows_ahead
        call, self.num_calls = self._call, self.num_calls + 1
        self._start_rows()
        self._world.at(self._world.now_s + timeout_s, self._time_out, self.num_calls)
        self._tell()
        self._calls.world_s += time.perf_counter() - started_s
        return call

    def go_down(self) -> None:
        """Lose the requests in flight: the server is gone."""
        self.is_up = False
        for row in list(self._in_flight):
            del self._in_flight[row]
            self._breaker.note_fault(self._world.now_s, "connection_failed")
            self._queue.appendleft(row)
        self._rest()

    def come_back(self) -> None:
        """Be up again; the next probe will find that."""
        self.is_up = True

    def grow(self, num_slots: int) -> None:
        """Get another server."""
        self.num_slots += num_slots
        self._start_rows()

    def _obey(self, orders: Orders) -> None:
        now_s = self._world.now_s
        for number in orders.abandoned & self._open.keys():
            self._forget(self._open.pop(number), lambda _: True)
        for number, rows in orders.dropped.items():
            one = self._open.get(number)
            if one is not None:
                self._drop(one, rows)
        if orders.gives_back and self._queue:
            given: dict[_Open, list[int]] = {}
            for one, place in self._queue:
                given.setdefault(one, []).append(place)
            self._queue.clear()
            for one, places in given.items():
                one.is_piece, one.left = True, one.left - len(places)
                self._reports.append(GivenBack(one.task.number, RowSet.of(places), len(places)))
                self._end_if_done(one)
        after_s = orders.overdue_s.get(self._url)
        rows = (
            [] if after_s is None else [(row, at_s) for row, at_s in self._in_flight.items() if now_s - at_s > after_s]
        )
        self._overdue = tuple(
            OverdueRequest(one.task.number, place, self._url, now_s - at_s) for (one, place), at_s in rows
        )
        for (one, _), _ in rows:
            one.is_piece = True

    def _drop(self, one: _Open, rows: RowSet) -> None:
        dropped = [place for other, place in list(self._in_flight) if other is one and place in rows]
        one.dropped += dropped
        one.left -= len(dropped)
        self._forget(one, dropped.__contains__)
        self._end_if_done(one)

    def _forget(self, one: _Open, has: Callable[[int], bool]) -> None:
        for row in [row for row in self._in_flight if row[0] is one and has(row[1])]:
            del self._in_flight[row]
        self._queue = deque(row for row in self._queue if not (row[0] is one and has(row[1])))

    def _take(self, task: Task) -> None:
        num_all = task.partition.stop - task.partition.start
        places = range(num_all) if task.places is None else task.places.within(0, num_all)
        one = self._open[task.number] = _Open(task, len(places), is_piece=task.is_piece)
        if task.pieces is not None:
            self._world.at(self._world.now_s + MAKE_FILE_S, self._end, one)
        else:
            self._queue.extend(zip(itertools.repeat(one), places))

    def _start_rows(self) -> None:
        while self._queue and len(self._in_flight) < self.num_slots and self._breaker.is_usable:
            if not self.is_up:
                self._breaker.note_fault(self._world.now_s, "connection_failed")
                if not self._breaker.is_usable:
                    self._rest()
                continue
            row = self._queue.popleft()
            at_s = self._world.now_s
            self._in_flight[row] = at_s
            self._world.at(at_s + next(self._times_s) / self.speed, self._answer, row, at_s)

    def _rest(self) -> None:
        if self._breaker.is_down:
            self._world.at(self._breaker.next_try_s, self._probe)

    def _probe(self) -> None:
        if not self._breaker.is_due(self._world.now_s):
            return
        if self.is_up:
            self._breaker.note_answer(self._world.now_s)
            self._start_rows()
        else:
            self._breaker.note_fault(self._world.now_s, "connection_failed", is_probe=True)
            self._rest()

    def _answer(self, row: tuple[_Open, int], at_s: float) -> None:
        if self._in_flight.get(row) != at_s:  # cancelled, or lost with its server
            return
        del self._in_flight[row]
        latency_s = self._world.now_s - at_s
        self.busy_s += latency_s
        self._meter.note_answer(latency_s)
        self._num_answers += 1
        one = row[0]
        one.counters.num_rows += 1
        one.counters.num_attempts += 1
        one.left -= 1
        self._end_if_done(one)
        self._start_rows()
        self._tell()

    def _end_if_done(self, one: _Open) -> None:
        if not one.left and one.task.pieces is None:
            self._end(one)

    def _end(self, one: _Open) -> None:
        task, part = one.task, one.task.partition
        if self._open.pop(task.number, None) is None:
            return
        if one.is_piece:
            self._reports.append(PieceReport(part, one.counters, "", task.number, RowSet.of(one.dropped)))
        else:
            self._reports.append(PartitionReport(part.index, "", task.pieces or one.counters, True, number=task.number))
        self._tell()

    def _time_out(self, number: int) -> None:
        if number == self.num_calls:
            self._tell(is_late=True)

    def _tell(self, *, is_late: bool = False) -> None:
        if self._call is None:
            return
        is_dry = len(self._open) < MAX_TASKS_OPEN and len(self._queue) < self._ahead
        if not (is_late or is_dry or self._reports or self._overdue):
            return
        call, self._call = self._call, None
        reports, self._reports = tuple(self._reports), []
        outage = Outage("connection_failed: down", 0.0, 0.0, 0.0) if self._breaker.is_down else None
        if self._world.now_s - self._known[0] >= STATUS_S:
            self._known = (self._world.now_s, self._meter.status())
        endpoint = self._known[1]
        stage = StageStatus(
            num_in_flight=len(self._in_flight),
            max_in_flight=self.num_slots,
            outage=outage,
            endpoints=(_with_load(endpoint, len(self._in_flight)),),
        )
        spending = Spending(num_answers=self._num_answers, output_tokens=TOKENS * self._num_answers)
        call.set_result(
            WorkerStatus(reports, len(self._queue), len(self._open), Counters(), spending, stage, overdue=self._overdue)
        )


def _with_load(endpoint: EndpointStatus, in_flight: int) -> EndpointStatus:
    return replace(endpoint, state="healthy", in_flight=in_flight)
