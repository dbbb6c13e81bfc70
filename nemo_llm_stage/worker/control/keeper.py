"""
Keeps a run's place in its output folder: holds it, writes the status and the timeline, takes the orders of people.

Works in a thread of its own, off the path of the rows. What fails there never fails the job. Knows files; knows nothing
of workers.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Self

from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.state.holder import Holder, publish_holder, read_holder, remove_holder
from nemo_llm_stage.dataset.state.json_file import now
from nemo_llm_stage.dataset.state.orders import (
    ORDERS,
    Answer,
    answer_order,
    open_orders,
    read_order,
    remove_answered_orders,
)
from nemo_llm_stage.dataset.state.status import LOCAL_INTERVAL_S, STORE_INTERVAL_S, JobStatus, write_status
from nemo_llm_stage.dataset.state.timeline import TIMELINE, remove_old_timelines, write_timeline
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import LLMStageError, RunStoppedError
from nemo_llm_stage.job.result import GpuTime
from nemo_llm_stage.stage.status import OrderStatistics
from nemo_llm_stage.text import one_line
from nemo_llm_stage.worker.control.control import RunControl
from nemo_llm_stage.worker.control.limit_news import LimitNews
from nemo_llm_stage.worker.control.move_news import MoveNews
from nemo_llm_stage.worker.control.order_news import OrderNews
from nemo_llm_stage.worker.control.server_news import ServerNews
from nemo_llm_stage.worker.control.standing import JobFacts, Standing

logger = logging.getLogger(__name__)

LOCAL_LOOK_S = 1.0
STORE_LOOK_S = 3.0
"""Seconds between two looks for orders."""

TIMELINE_INTERVAL_S = 30.0
MAX_FAILURES_SHOWN = 20
MAX_EVENTS_SHOWN = 20


class RunKeeper:
    """
    Keeps the folder of a run from `__enter__` to `__exit__`.

    Args:
        state: The job's state folder, which `holder` holds.
        holder: This run.
        facts: About the job.
        control: Takes the orders.
    """

    def __init__(self, state: Folder, holder: Holder, facts: JobFacts, control: RunControl) -> None:
        self.control = control
        self._state = state
        self._holder = holder
        self._facts = facts
        self._standing = Standing(counters=facts.before)
        self._news = ServerNews()
        self._limit_news = LimitNews()
        self._order_news = OrderNews()
        self._move_news = MoveNews()
        self._interval_s = LOCAL_INTERVAL_S if state.is_local else STORE_INTERVAL_S
        self._look_s = LOCAL_LOOK_S if state.is_local else STORE_LOOK_S
        self._started_monotonic_s = time.monotonic()
        self._is_over = threading.Event()
        self._has_failed = False
        self._thread = threading.Thread(target=self._keep, name="run-keeper", daemon=True)

    def __enter__(self) -> Self:
        """Begin to keep the folder."""
        self._attempt(self._look_at_earlier_runs)
        self._attempt(self._write_status)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write how the run ended, and give the folder back."""
        self._is_over.set()
        self._thread.join()
        if not self._is_own():
            return
        phase, reason = _end_of(error)
        self._note_moves(math.inf)
        self.control.note(phase, reason or "every row is accounted for")
        self._attempt(lambda: self._refuse_orders(phase))
        self._attempt(lambda: self._write_status(phase, reason))
        self._attempt(self._write_timeline)
        self._attempt(lambda: remove_holder(self._state, self._holder.run_id))

    @property
    def num_rows(self) -> int:
        """Rows of the run and of those before."""
        return self._facts.num_rows

    @property
    def endpoints(self) -> tuple[EndpointStatus, ...]:
        """What each server did in this run."""
        return self._standing.stage.endpoints

    @property
    def order(self) -> OrderStatistics:
        """What the order in which rows were sent has saved."""
        return self._standing.stage.order

    def update(self, standing: Standing) -> None:
        """Take note of how the run stands. Called in the driver's thread."""
        self._standing = standing
        for text in self._news.of(standing.stage.endpoints, is_start=standing.is_start):
            self.control.note("server", text)
        for text in self._limit_news.of(standing.stage.endpoints, time.monotonic()):
            self.control.note("in flight", text)
        for text in self._order_news.of(standing.stage.order):
            self.control.note("order", text)
        self._note_moves(time.monotonic())

    def _note_moves(self, now_s: float) -> None:
        for text in self._move_news.of(self._standing.moves, now_s):
            self.control.note("rows", text)

    @property
    def elapsed_s(self) -> float:
        """Seconds of all runs of the job so far."""
        return self._facts.elapsed_before_s + time.monotonic() - self._started_monotonic_s

    def flush(self) -> None:
        """Write the status and the timeline as they are now."""
        self._add_point()
        self._attempt(self._write_status)
        self._attempt(self._write_timeline)

    def _look_at_earlier_runs(self) -> None:
        """Remove what earlier runs left, and follow the orders that wait; one listing tells whether there is any."""
        _, folders = self._state.contents()
        if ORDERS in folders:
            self._attempt(lambda: remove_answered_orders(self._state))
            self._attempt(lambda: self._take_orders(is_first=True))
        if TIMELINE in folders:
            self._attempt(lambda: remove_old_timelines(self._state))

    def _keep(self) -> None:
        next_status = next_timeline = time.monotonic() + self._interval_s
        while not self._is_over.wait(self._look_s):
            if not self._is_own():
                return
            self._attempt(self._take_orders)
            if time.monotonic() >= next_status:
                self._attempt(self._write_status)
                next_status = time.monotonic() + self._interval_s
            self._add_point()
            if time.monotonic() >= next_timeline:
                self._attempt(self._write_timeline)
                next_timeline = time.monotonic() + TIMELINE_INTERVAL_S

    def _is_own(self) -> bool:
        """Whether this run still holds the folder; where that cannot be read, it does."""
        try:
            holder = read_holder(self._state)
            if holder is None and publish_holder(self._state, self._holder):  # who took it over has ended
                return True
        except (OSError, LLMStageError):
            return True
        if holder is not None and holder.run_id == self._holder.run_id:
            return True
        process = "another one" if holder is None else f"process {holder.process.pid} on {holder.process.host}"
        self.control.lose(
            f"another run has taken over {self._state.url!r} ({process}); this one stops. Committed files and "
            "journaled answers stay."
        )
        return False

    def _take_orders(self, *, is_first: bool = False) -> None:
        for order_id in open_orders(self._state):
            is_late = False
            try:
                order = read_order(self._state, order_id)
                is_late = is_first and order.kind != "set"
                answer = Answer(False, "it was given before this run began.") if is_late else self.control.take(order)
            except LLMStageError as error:
                answer = Answer(False, str(error))
            answer_order(self._state, order_id, answer)
            if is_first and not is_late and not answer.is_done:
                logger.warning("an order that waited for this run is not followed: %s", answer.text)
            if answer.is_done:
                self._write_status()

    def _refuse_orders(self, phase: str) -> None:
        for order_id in open_orders(self._state):
            answer_order(self._state, order_id, Answer(False, f"the run has ended ({phase})."))

    def _write_timeline(self) -> None:
        write_timeline(self._state, self._holder.run_id, self.control.timeline)

    def _write_status(self, phase: str | None = None, reason: str | None = None) -> None:
        standing = self._standing
        if phase is None and standing.phase == "running":
            phase, reason = self.control.phase, self.control.reason
        write_status(self._state, self._status(phase or standing.phase, reason))

    def _status(self, phase: str, reason: str | None) -> JobStatus:
        standing, facts, counters = self._standing, self._facts, self._standing.counters
        return JobStatus(
            run_id=self._holder.run_id,
            job_id=facts.job_id,
            phase=phase,
            reason=reason,
            process=self._holder.process,
            started_at=self._holder.started_at,
            updated_at=now(),
            interval_s=self._interval_s,
            elapsed_s=round(self.elapsed_s, 3),
            command=facts.command,
            num_rows=facts.num_rows,
            is_exact=facts.is_exact,
            num_rows_before=facts.before.num_rows,
            counters=counters,
            num_in_flight=standing.stage.num_in_flight,
            max_concurrent_requests=standing.stage.max_in_flight,
            **asdict(standing.pace),
            spending=self._spending(),
            limits=self.control.limits,
            trouble=None if standing.stage.outage is None else standing.stage.outage.error,
            endpoints=[_endpoint(status) for status in standing.stage.endpoints],
            failures=_failures(counters),
            rows=list(self.control.newest_rows()),
            events=[asdict(event) for event in self.control.timeline.events[-MAX_EVENTS_SHOWN:]],
        )

    def _spending(self) -> dict[str, float]:
        settings, spending = self.control.settings, self.control.spending
        values: dict[str, float] = asdict(spending)
        if settings.price_input is not None or settings.price_output is not None:
            values["cost"] = round(spending.cost(settings.price_input, settings.price_output), 6)
        gpu_time = GpuTime.of(self.elapsed_s, settings.gpus, settings.gpu_price_per_hour)
        if gpu_time is not None:
            values["gpu_hours"] = round(gpu_time.hours, 6)
            if gpu_time.cost is not None:
                values["gpu_cost"] = round(gpu_time.cost, 6)
        return values

    def _add_point(self) -> None:
        counters = self._standing.counters
        self.control.timeline.add_point(
            time.monotonic() - self._started_monotonic_s,
            counters.num_rows,
            self._standing.pace.rows_per_s,
            self._standing.stage.num_in_flight,
            self._standing.stage.max_in_flight,
            counters.num_failed,
            self._spending().get("cost", 0.0),
        )

    def _attempt(self, step: Any) -> None:
        """Do a step that may fail; the first failure is a warning, later ones go to the debug log only."""
        try:
            step()
        except Exception:
            level = logging.DEBUG if self._has_failed else logging.WARNING
            self._has_failed = True
            logger.log(level, "the status of %s could not be kept", self._state.url, exc_info=True)


def _end_of(error: BaseException | None) -> tuple[str, str | None]:
    """Return the phase and the reason of a run that ended so."""
    if error is None:
        return "finished", None
    is_stop = isinstance(error, RunStoppedError | KeyboardInterrupt | SystemExit)
    text = str(error) or type(error).__name__
    return "stopped" if is_stop else "failed", one_line(text.removeprefix("stopped: "), 500)


def _endpoint(status: EndpointStatus) -> dict[str, Any]:
    """Return how a server stands, with percentiles in place of the histogram."""
    values = asdict(replace(status, latencies=()))
    del values["latencies"]
    return values | {"p50_s": status.p50_s, "p95_s": status.p95_s, "p99_s": status.p99_s}


def _failures(counters: Counters) -> list[dict[str, Any]]:
    kinds = sorted(counters.errors.items(), key=lambda item: -item[1])[:MAX_FAILURES_SHOWN]
    return [
        {"kind": kind, "num": num, "example": one_line(counters.examples.get(kind, ""), 500)} for kind, num in kinds
    ]
