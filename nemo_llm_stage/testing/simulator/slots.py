"""
Slots: the plain model of service time.

A `Job` waits, is served in one of `max_num_seqs` slots for as long as it says, and is done. Knows event loops and
stats; nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from nemo_llm_stage.testing.simulator.stats import StatsRecorder


class QueueFullError(Exception):
    """As many jobs wait as may wait."""


@dataclass(eq=False, slots=True)
class Job:
    """
    One request to be served.

    Attributes:
        prompt: The rendered prompt.
        prompt_tokens: Its length.
        output_tokens: Tokens to generate; at least 1.
        service_s: Seconds in a slot; batching has its own idea.
        on_start: Called when it is served; with batching, when the first token is there.
        on_finish: Called when the last token is there.
        started_s: Monotonic time when it was given a slot; None while it waits.
        cached_tokens: Prompt tokens that were not computed again.
        is_finished: The last token is there.
        timer: Rings at its end.
    """

    prompt: str
    prompt_tokens: int
    output_tokens: int
    service_s: float
    on_start: Callable[[], None]
    on_finish: Callable[[], None]
    started_s: float | None = None
    cached_tokens: int = 0
    is_finished: bool = False
    timer: asyncio.TimerHandle | None = None


class Engine(ABC):
    """
    Decides when a job starts and finishes.

    Args:
        max_num_seqs: Jobs served at one time.
        max_queue: Jobs that may wait; None for any number.
        stats: Where starts and ends are counted.
    """

    def __init__(self, max_num_seqs: int, max_queue: int | None, stats: StatsRecorder) -> None:
        self.max_num_seqs = max_num_seqs
        self.max_queue = max_queue
        self.stats = stats
        self._waiting: deque[Job] = deque()

    @property
    def num_running(self) -> int:
        """Jobs being served."""
        return self.stats.seen.running

    @property
    def num_waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV cache in use, 0 to 1; here of the slots."""
        return self.num_running / self.max_num_seqs

    def submit(self, job: Job) -> None:
        """
        Take a job in; its callbacks may run before this returns.

        Raises:
            QueueFullError: The queue is as long as it may be.
        """
        if self.max_queue is not None and self.num_running + len(self._waiting) >= self.max_num_seqs + self.max_queue:
            raise QueueFullError
        self._waiting.append(job)
        self._serve_waiting()

    @abstractmethod
    def cancel(self, job: Job) -> int:
        """Take a job out, waiting or running; its callbacks are not called. Return the tokens generated for it."""

    @abstractmethod
    def _serve_waiting(self) -> None:
        """Start what can start now."""


class SlotEngine(Engine):
    """Serves each job for its own `service_s`, whatever else runs."""

    def cancel(self, job: Job) -> int:
        """Take a job out; its tokens count as generated evenly over its time."""
        if job.started_s is None:
            self._waiting.remove(job)
            return 0
        assert job.timer is not None
        job.timer.cancel()
        share = min(1.0, (time.monotonic() - job.started_s) / job.service_s)
        self._end(job)
        self._serve_waiting()
        return int(job.output_tokens * share)

    def _serve_waiting(self) -> None:
        while self._waiting and self.num_running < self.max_num_seqs:
            job = self._waiting.popleft()
            job.started_s = time.monotonic()
            self.stats.started(job.started_s)
            job.on_start()
            if job.service_s > 0:
                job.timer = asyncio.get_running_loop().call_later(job.service_s, self._time_up, job)
            else:
                self._end(job)
                job.on_finish()

    def _time_up(self, job: Job) -> None:
        self._end(job)
        self._serve_waiting()  # before the answer: the slot is never empty while its client gets it
        job.on_finish()

    def _end(self, job: Job) -> None:
        assert job.started_s is not None
        self.stats.ended(job.started_s, time.monotonic())
