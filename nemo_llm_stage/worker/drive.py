"""
The loop of a run: hand tasks out to workers, collect what they report, put back what a dead one had.

The same for workers in this process and in others. Knows no Ray.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Protocol

from nemo_llm_stage.core import sum_counters
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.errors import RunError
from nemo_llm_stage.worker.dispatch import Handout
from nemo_llm_stage.worker.engine import TICK_S, Monitor, Status
from nemo_llm_stage.worker.host import Failure, News
from nemo_llm_stage.worker.spec import WorkerSpec
from nemo_llm_stage.worker.task import PartitionReport, Task

MAX_DEATHS = 30
"""Deaths in a row of one worker, not one row finished in between, after which the run is given up."""


class WorkerLostError(Exception):
    """A worker is dead, or out of reach."""


class Seat(Protocol):
    """The place of one worker; a dead one's is taken by a new one."""

    def start(self) -> Future[News]:
        """Make a worker, in the place of the one before, and return its first news."""

    def exchange(self, tasks: Sequence[Task], num_rows_ahead: int, patience_s: float) -> Future[News]:
        """
        Call the worker's `WorkerHost.exchange`.

        Raises:
            WorkerLostError: By the future.
        """

    def stop(self) -> None:
        """End the worker; return when it has abandoned what it ran."""


def handout_of(spec: WorkerSpec, partitions: Sequence[Partition], num_workers: int) -> Handout:
    """Return `partitions` to be shared among so many workers of `spec`, or fewer where that would be too many."""
    num_rows = len(partitions) * spec.rows_per_partition
    return Handout(
        partitions,
        num_workers=min(num_workers, max(len(partitions), num_rows // spec.num_permits)),
        num_permits=spec.num_permits,
        rows_per_partition=spec.rows_per_partition,
        can_cut=spec.retry_kinds is None,
    )


def drive(seats: Sequence[Seat], handout: Handout, monitor: Monitor) -> Iterator[PartitionReport]:
    """
    Run what `handout` holds, and yield a report for each partition as it is committed, in any order.

    Raises:
        Exception: What a worker or `monitor` raised.
        RunError: A worker died again and again.
    """
    sitters = [_Sitter(str(number), seat) for number, seat in enumerate(seats)]
    for sitter in sitters:
        sitter.start()
    next_tick = time.monotonic() + TICK_S
    while not handout.is_over:
        calls = {sitter.call: sitter for sitter in sitters}
        done, _ = wait(calls, timeout=max(0.0, next_tick - time.monotonic()), return_when=FIRST_COMPLETED)
        for call in done:
            yield from calls[call].attend(handout)
        if time.monotonic() >= next_tick:
            monitor(_status([sitter.news for sitter in sitters], handout))
            next_tick = time.monotonic() + TICK_S


class _Sitter:
    """One worker as the loop sees it: what it told last, and the call to it that is under way."""

    call: Future[News]

    def __init__(self, name: str, seat: Seat) -> None:
        self.news = News()
        self._name = name
        self._seat = seat
        self._num_deaths = 0

    def start(self) -> None:
        # It gets its first task when it is up: before, it may wait for room in the cluster.
        self.news = News()
        self.call = self._seat.start()

    def attend(self, handout: Handout) -> Iterator[PartitionReport]:
        """Take the worker's news, give it more to do, and yield the partitions that it has committed."""
        try:
            self.news = self.call.result()
        except WorkerLostError as error:
            self._num_deaths += 1
            if self._num_deaths == MAX_DEATHS:
                raise RunError(
                    f"a worker died {MAX_DEATHS} times in a row before it had finished a row: {error} See Ray's logs."
                ) from error
            handout.put_back(self._name)
            self.start()
            return
        reports = self.news.reports
        if reports or self.news.open.num_rows:
            self._num_deaths = 0
        for report in reports:
            if isinstance(report, Failure):
                raise report.to_error()
            handout.finish(self._name, report)
        tasks = handout.take(self._name, num_waiting=self.news.num_waiting, num_open=self.news.num_open)
        self.call = self._seat.exchange(tasks, handout.num_rows_ahead, TICK_S)
        yield from (report for report in reports if isinstance(report, PartitionReport))


def _status(news: Sequence[News], handout: Handout) -> Status:
    return Status(
        open=sum_counters([handout.counters(), *(one.open for one in news)]),
        num_in_flight=sum(one.num_in_flight for one in news),
        trouble=next((one.trouble for one in news if one.trouble), None),
    )
