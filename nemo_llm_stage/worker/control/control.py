"""
What steers a run while it goes on: orders that people give, the limits that are left, and when it must end.

The driver's thread asks it for the workers' orders and tells it how the run stands; the keeper's thread brings the
orders of people. Knows no files.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nemo_llm_stage.client.throttle import Spending, Throttle
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.state.orders import Answer, Order
from nemo_llm_stage.dataset.state.timeline import Event, Timeline
from nemo_llm_stage.errors import ConfigError, RunError, RunStoppedError
from nemo_llm_stage.job.failure_limit import FailureLimit
from nemo_llm_stage.worker.control.allowances import BUDGETS, RATES, Allowances
from nemo_llm_stage.worker.control.drift import Drift
from nemo_llm_stage.worker.control.scripts import ScriptDrift
from nemo_llm_stage.worker.engine import Phase
from nemo_llm_stage.worker.orders import Need, Orders

logger = logging.getLogger(__name__)

CAN_BE_SET = ("max_concurrent_requests", "max_failed_rows", *BUDGETS, "max_duration", *RATES)
"""Settings that an order may change."""

LIMITS = ("max_failed_rows", *BUDGETS, "max_duration", *RATES)

MAX_ROWS_SHOWN = 20


class RunControl:
    """
    Steers one run. May be used from several threads; a `nemo_llm_stage.worker.orders.Control`.

    Args:
        settings: The job's.
        before: What earlier runs of the job spent.
        max_concurrent_requests: Of each worker, as its client was made.
        timeline: Gets the events.

    Attributes:
        settings: With what orders changed.
        failure_limit: Likewise.
        timeline: As given.
        rows: A few of the newest finished rows.
    """

    def __init__(
        self, settings: JobSettings, before: Spending, max_concurrent_requests: int, timeline: Timeline
    ) -> None:
        self.settings = settings
        self.failure_limit = FailureLimit(settings.max_failed_rows)
        self.timeline = timeline
        self._lock = threading.RLock()
        self._allowances = Allowances(settings, before, max_concurrent_requests)
        self._max_concurrent_requests: int | None = None
        self._is_paused = False
        self._end: str | None = None
        self._lost: str | None = None
        self._started_monotonic_s = time.monotonic()
        self._drift = Drift()
        self._scripts = ScriptDrift()
        self.rows: deque[dict[str, Any]] = deque(maxlen=MAX_ROWS_SHOWN)

    @property
    def phase(self) -> Phase:
        """``running``, ``paused`` or ``draining``."""
        return "draining" if self._end else "paused" if self._is_paused else "running"

    @property
    def is_draining(self) -> bool:
        """Whether the run ends as soon as the workers have drained."""
        return self._end is not None

    @property
    def reason(self) -> str | None:
        """Why it is paused or draining."""
        return self._end or ("an order said so" if self._is_paused else None)

    @property
    def spending(self) -> Spending:
        """What all runs of the job spent."""
        with self._lock:
            return self._allowances.spending

    @property
    def max_concurrent_requests(self) -> int:
        """Requests that a worker keeps in flight."""
        return self._allowances.max_concurrent_requests

    @property
    def limits(self) -> dict[str, Any]:
        """The limits that hold now."""
        return {name: value for name in LIMITS if (value := getattr(self.settings, name)) is not None}

    def orders_of(self, worker: str, need: Need) -> Orders:
        """See `nemo_llm_stage.worker.orders.Control`."""
        with self._lock:
            self.rows.extend(need.rows)
            self._scripts.note(need.rows)
            grant = self._allowances.grant_of(worker, need, time.monotonic())
            throttle = Throttle(self._is_paused, self._max_concurrent_requests, grant)
            return Orders(throttle, is_draining=self.is_draining)

    def newest_rows(self) -> tuple[dict[str, Any], ...]:
        """Return a few of the newest finished rows, oldest first."""
        with self._lock:
            return tuple(self.rows)

    def forget(self, worker: str) -> None:
        """See `nemo_llm_stage.worker.orders.Control`."""
        with self._lock:
            self._allowances.forget(worker)

    def check(self, counters: Counters) -> None:
        """
        Look whether the run, which counted `counters`, must end. Called in the driver's thread.

        Raises:
            TooManyFailedRowsError: More rows failed than are allowed.
            RunError: Another run has taken over the folder.
        """
        self.failure_limit.check(counters)
        with self._lock:
            if self._lost is not None:
                raise RunError(self._lost)
            self._look_at_drift(counters)
            if self._end is None:
                self._look_at_limits()

    def raise_end(self, account: str) -> None:
        """
        Raise why the run, which has drained, ended before its rows did; `account` says how far it came.

        Raises:
            RunStoppedError: A limit is reached, or an order said so.
        """
        if self._end is not None:
            raise RunStoppedError(f"{self._end}. {account}")

    def lose(self, message: str) -> None:
        """End the run at the driver's next look, because the folder is not its own any more."""
        self._lost = message

    def take(self, order: Order) -> Answer:
        """Follow `order`, and return what was done."""
        with self._lock:
            try:
                text = self._follow(order)
            except ConfigError as error:
                return Answer(False, str(error))
            self.note(order.kind, f"{text} (by {order.by})")
            return Answer(True, text)

    def note(self, kind: str, text: str) -> Event:
        """Write an event into the timeline."""
        with self._lock:
            return self.timeline.add_event(kind, text)

    def _follow(self, order: Order) -> str:
        if order.kind == "set":
            return self._set(order.settings)
        if order.kind == "pause":
            self._is_paused = True
            return "paused: no requests are started; those in flight end. resume goes on."
        if order.kind == "resume":
            self._is_paused = False
            return "running."
        if order.kind == "drain":
            self._end = self._end or f"{order.by} ordered to drain"
            return "draining: no requests are started; the run ends when those in flight have ended."
        self.lose(f"{order.by} has ordered this run to stop. Committed files and journaled answers stay.")
        return "stopping."

    def _set(self, values: Mapping[str, Any]) -> str:
        check_can_be_set(values, self.settings)
        given = dict(values)
        size = given.pop("max_concurrent_requests", None)
        self.settings = replace(self.settings, **given)
        self.failure_limit = FailureLimit(self.settings.max_failed_rows)
        self._allowances.settings = self.settings
        if size is not None:
            self._max_concurrent_requests = self._allowances.max_concurrent_requests = size
        return ", ".join(f"{name} is {value} now" for name, value in values.items()) + "."

    def _look_at_drift(self, counters: Counters) -> None:
        for text in (*self._drift.look(counters), *self._scripts.look()):
            self.note("drift", text)
            logger.warning("the answers have changed: %s", text)
            if self.settings.on_drift == "stop" and self._end is None:
                self._end = f"the answers have changed: {text} (on_drift: stop)"

    def _look_at_limits(self) -> None:
        elapsed_s, longest_s = time.monotonic() - self._started_monotonic_s, self.settings.max_duration
        reached = self._allowances.reached()
        if longest_s is not None and elapsed_s >= longest_s:
            reached = f"max_duration = {longest_s:g} s is reached"
        if reached is not None:
            self._end = reached
            self.note("limit", f"{reached}; the run ends when the requests in flight have ended")


def check_can_be_set(values: Mapping[str, Any], settings: JobSettings) -> None:
    """
    Check the settings that an order changes.

    Raises:
        ConfigError: There are none, one cannot be changed while a job runs, or a value cannot work.
    """
    for name in values:
        if name not in CAN_BE_SET:
            raise ConfigError(f"{name} cannot be changed while a job runs; these can: {', '.join(CAN_BE_SET)}.")
    if not values:
        raise ConfigError(f"nothing is to be set; these can be: {', '.join(CAN_BE_SET)}.")
    given = dict(values)
    size = given.pop("max_concurrent_requests", None)
    if "max_concurrent_requests" in values and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        hint = " A run that is begun anew follows the job file: drain, then run." if size == "auto" else ""
        raise ConfigError(f"max_concurrent_requests is {size!r}; it must be a whole number of at least 1.{hint}")
    replace(settings, **given)
