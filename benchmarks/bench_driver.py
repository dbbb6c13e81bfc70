"""
How much CPU does the driver of a job take, with so many workers on Ray?

The real loop of a run, the real hand-out and real calls to Ray actors; the actors reserve no CPU and only count rows,
as 256 slots of 10 s would answer them. The driver's CPU is that of this whole process, Ray's threads included, once all
actors are up. Workers make a bounded number of reports without news a second, all together, so that the cost for 1,000
workers is that of the calls that they make: in the last line, these times what a call took with the most actors.
"""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Any

from _report import add_plot_option, make_parser, new_figure, save_figure, show

from nemo_llm_stage.client.endpoint_status import EndpointMeter
from nemo_llm_stage.client.throttle import Spending
from nemo_llm_stage.cluster.connect import connect
from nemo_llm_stage.cluster.ray_engine import ActorSlot
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.stage.status import StageStatus
from nemo_llm_stage.worker.dispatch import MAX_TASKS_OPEN, Handout
from nemo_llm_stage.worker.drive import MAX_REPORTS_PER_S, drive
from nemo_llm_stage.worker.engine import TICK_S, RunStatus
from nemo_llm_stage.worker.host import WorkerStatus
from nemo_llm_stage.worker.orders import NO_ORDERS, Orders
from nemo_llm_stage.worker.task import PartitionReport, Report, Task

NUM_SLOTS = 256
ROW_S = 10.0
ROWS_PER_PARTITION = 1_000
SETTLE_S = 3.0
MANY = 1_000
GOAL = 0.5
COLUMNS = ("workers", "calls/s", "CPU of a call", "driver CPU")


class CountingWorker:
    """
    Has rows answered by the clock alone; see `WorkerHost`.

    Args:
        number: Of the worker.
    """

    def __init__(self, number: int) -> None:
        self._url = f"http://server-{number}:8000/v1"
        self._meter = EndpointMeter(self._url)
        self._open: deque[tuple[Task, float]] = deque()
        self._done = 0.0
        self._at_s = time.monotonic()
        self._is_stopped = False

    def collect(
        self, tasks: Sequence[Task], num_rows_ahead: int, timeout_s: float, orders: Orders = NO_ORDERS
    ) -> WorkerStatus:
        """Wait for news as a worker does: a task has ended, rows run out, or it is time."""
        self._work()
        self._open.extend((task, float(task.num_rows)) for task in tasks)
        end_s = time.monotonic() + timeout_s
        reports = self._reports()
        while not (reports or self._is_stopped) and not self._is_dry(num_rows_ahead) and time.monotonic() < end_s:
            time.sleep(max(0.0, min(end_s - time.monotonic(), self._next_s(num_rows_ahead))) + 1e-3)
            self._work()
            reports = self._reports()
        num_in_flight = int(min(NUM_SLOTS, self._num_left))
        endpoint = replace(self._meter.status(), state="healthy", in_flight=num_in_flight)
        return WorkerStatus(
            tuple(reports),
            num_waiting=int(self._num_left) - num_in_flight,
            num_open=len(self._open),
            open=Counters(num_rows=int(self._done)),
            spending=Spending(num_answers=self._meter.num_answered),
            stage=StageStatus(num_in_flight=num_in_flight, max_in_flight=NUM_SLOTS, endpoints=(endpoint,)),
        )

    def stop(self) -> None:
        """See `WorkerHost`."""
        self._is_stopped = True

    @property
    def _num_left(self) -> float:
        return sum(left for _, left in self._open) - self._done

    def _work(self) -> None:
        now_s = time.monotonic()
        done = min((now_s - self._at_s) * NUM_SLOTS / ROW_S, self._num_left)
        self._done, self._at_s = self._done + done, now_s
        for _ in range(int(done)):
            self._meter.note_answer(ROW_S)

    def _reports(self) -> list[Report]:
        reports: list[Report] = []
        while self._open and self._open[0][1] <= self._done:
            task, num_rows = self._open.popleft()
            self._done -= num_rows
            counters = Counters(num_rows=task.num_rows, num_attempts=task.num_rows)
            reports.append(PartitionReport(task.partition.index, "", counters, True, number=task.number))
        return reports

    def _is_dry(self, num_rows_ahead: int) -> bool:
        return len(self._open) < MAX_TASKS_OPEN and self._num_left - NUM_SLOTS < num_rows_ahead

    def _next_s(self, num_rows_ahead: int) -> float:
        """Return after how many seconds there is news."""
        rows = [self._num_left - NUM_SLOTS - num_rows_ahead]
        rows += [self._open[0][1] - self._done] if self._open else []
        return max(0.0, min(rows)) * ROW_S / NUM_SLOTS


class CountedSlot(ActorSlot):
    """Counts its calls."""

    num_calls = 0

    def collect(
        self, tasks: Sequence[Task], num_rows_ahead: int, timeout_s: float, orders: Orders = NO_ORDERS
    ) -> Future[WorkerStatus]:
        """See `ActorSlot`."""
        CountedSlot.num_calls += 1
        return super().collect(tasks, num_rows_ahead, timeout_s, orders)


class Enough(Exception):  # noqa: N818 - not an error
    """The time to measure is over."""


@dataclass(frozen=True)
class Cost:
    """What the driver took with so many workers."""

    num_workers: int
    calls_per_s: float
    cores: float

    @property
    def call_s(self) -> float:
        """CPU seconds of a call, with its share of everything else."""
        return self.cores / self.calls_per_s


def measure(num_workers: int, seconds: float) -> Cost:
    """Run so many workers for so long, and return what the driver took."""
    num_rows = int(num_workers * NUM_SLOTS / ROW_S * (seconds + 60.0) * 4)
    partitions = [
        Partition(index, "in.parquet", "parquet", start, start + ROWS_PER_PARTITION, ROWS_PER_PARTITION)
        for index, start in enumerate(range(0, num_rows, ROWS_PER_PARTITION))
    ]
    handout = Handout(
        partitions,
        num_workers=num_workers,
        max_concurrent_requests=NUM_SLOTS,
        rows_per_partition=ROWS_PER_PARTITION,
        hedges=True,
    )
    slots: list[Any] = [CountedSlot(CountingWorker, number, 0.0, None) for number in range(num_workers)]
    marks: list[tuple[float, float, int]] = []
    up_s: list[float] = []

    def monitor(status: RunStatus) -> None:
        now_s = time.monotonic()
        if status.num_workers_up < num_workers:
            return
        up_s.append(now_s)
        if now_s - up_s[0] >= SETTLE_S and (not marks or now_s - marks[0][0] >= seconds):
            used = resource.getrusage(resource.RUSAGE_SELF)
            marks.append((now_s, used.ru_utime + used.ru_stime, CountedSlot.num_calls))
            if len(marks) > 1:
                raise Enough

    try:
        for _ in drive(slots, handout, monitor):
            pass
    except Enough:
        pass
    finally:
        for slot in slots:
            slot.begin_stop()
        time.sleep(2 * TICK_S)  # an actor that is killed in a call says much about it
        for slot in slots:
            slot.kill()
    (start_s, start_cpu_s, start_calls), (end_s, end_cpu_s, end_calls) = marks
    span_s = end_s - start_s
    return Cost(num_workers, (end_calls - start_calls) / span_s, (end_cpu_s - start_cpu_s) / span_s)


def extrapolated(costs: Sequence[Cost]) -> Cost:
    """Return what many workers would take: each call as with the most workers, and as many calls as they may make."""
    most = max(costs, key=lambda cost: cost.num_workers)
    of_news = max(0.0, most.calls_per_s - _reports_per_s(most.num_workers)) / most.num_workers
    calls_per_s = _reports_per_s(MANY) + of_news * MANY
    return Cost(MANY, calls_per_s, calls_per_s * most.call_s)


def _reports_per_s(num_workers: int) -> float:
    """Return how many reports without news so many workers make."""
    return min(MAX_REPORTS_PER_S, num_workers / TICK_S)


def plot(costs: Sequence[Cost], many: Cost) -> Any:
    """Return a figure of the driver's CPU over the workers."""
    figure, (axis,) = new_figure(1, height=4.0)
    axis.plot([cost.num_workers for cost in costs], [cost.cores for cost in costs], "o-", label="measured")
    axis.plot([many.num_workers], [many.cores], "s", label="extrapolated")
    axis.axhline(GOAL, color="gray", linestyle=":", label="goal")
    axis.set_xlabel("workers")
    axis.set_ylabel("cores of the driver")
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def _row(cost: Cost) -> list[object]:
    guess = " (extrapolated)" if cost.num_workers == MANY else ""
    name = f"{cost.num_workers:,}{guess}"
    return [name, f"{cost.calls_per_s:,.0f}", f"{1e6 * cost.call_s:.0f} µs", f"{cost.cores:.3f} cores"]


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 50, 100, 200], help="(%(default)s)")
    add_plot_option(parser, "the driver's CPU over the workers")
    parser.add_argument("--seconds", type=float, default=20.0, help="measured for each (%(default)s)")
    options = parser.parse_args()
    connect()
    costs = [measure(num_workers, options.seconds) for num_workers in options.workers]
    costs.append(extrapolated(costs))
    show("driver", options=options, columns=COLUMNS, rows=map(_row, costs), results=list(map(asdict, costs)))
    if options.plot is not None:
        save_figure(plot(costs[:-1], costs[-1]), options.plot)


if __name__ == "__main__":
    main()
