"""
Rates and the time left, from counts that come about twice a second.

Pure: the times come with the counts. Rows of earlier runs and journaled answers are no speed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from statistics import fmean, stdev

from nemo_llm_stage.client.endpoint_status import EndpointStatus, percentile_s
from nemo_llm_stage.counters import Counters, sum_counters
from nemo_llm_stage.report.estimate import student_t
from nemo_llm_stage.report.progress.view import EndpointView, JobTitle, View
from nemo_llm_stage.worker.engine import RunStatus

WINDOW_S = 60.0
SAMPLE_EVERY_S = 1.0

MIN_ANSWERS_FOR_ETA = 20
"""Before so many answers nobody knows how long the rest takes."""

MIN_STALL_S = 3.0
"""Without an answer for so long, while requests wait for the server, nothing is known of the time left."""

BLOCK_S = 5.0
"""The window is cut into blocks of this length, whose rates tell how steady the speed is."""

MIN_SPREAD, MAX_SPREAD = 0.05, 0.75


@dataclass(frozen=True, slots=True)
class _Sample:
    """The counts of this run at one moment. Nothing of them was paid for by an earlier run."""

    at_s: float
    num_rows: int
    input_tokens: int
    output_tokens: int
    endpoints: tuple[EndpointStatus, ...]


class Meter:
    """
    Turns counts into a `View`.

    Args:
        title: What runs.
        before: Counts of the rows that earlier runs had committed.
        started_monotonic_s: When this run began.
    """

    def __init__(self, title: JobTitle, before: Counters, started_monotonic_s: float) -> None:
        self._title = title
        self._before = before
        self._started_s = started_monotonic_s
        self._window: deque[_Sample] = deque()
        self._last_answer_s = started_monotonic_s
        self._was_stalled = False
        self._is_back_s = -math.inf

    def view(
        self, status: RunStatus, run: Counters, *, monotonic_s: float, now: float, drain_left_s: float | None = None
    ) -> View:
        """
        Return how the job stands.

        Args:
            status: From the engine.
            run: Counts of this run so far, open partitions included.
            monotonic_s: The time of the counts.
            now: Likewise, in unix seconds.
            drain_left_s: See `View`.
        """
        sample = _sample(status, run, monotonic_s)
        self._add(sample)
        counters = sum_counters([self._before, run])
        stalled_since = self._stalled_since(status, monotonic_s, now)
        is_draining = drain_left_s is not None
        stands_still = stalled_since is not None or status.phase == "paused"
        if self._was_stalled and not stands_still:  # the speed is that of the servers that are back
            self._window = deque([sample])
            self._is_back_s = monotonic_s
        self._was_stalled = stands_still
        has_rates = sample.num_rows > 0
        return View(
            title=self._title,
            now=now,
            elapsed_s=monotonic_s - self._started_s,
            counters=counters,
            run=run.without_resumed(),
            phase="draining" if is_draining else status.phase,
            waits_for=status.waits_for,
            drain_left_s=drain_left_s,
            rows_per_s=self._rate([each.num_rows for each in self._window]) if has_rates else None,
            input_per_s=self._rate([each.input_tokens for each in self._window]) if has_rates else 0.0,
            output_per_s=self._rate([each.output_tokens for each in self._window]) if has_rates else 0.0,
            left_s=None if stands_still or is_draining else self._left_s(counters, sample),
            stalled_since=stalled_since,
            cost=self._title.cost(counters.input_tokens, counters.output_tokens) if self._title.has_prices else None,
            expected_cost=self._expected_cost(counters, sample),
            stage=status.stage,
            endpoints=tuple(self._endpoint(endpoint) for endpoint in status.stage.endpoints),
        )

    def _add(self, sample: _Sample) -> None:
        window = self._window
        if not sample.num_rows:
            window.clear()  # the speed is counted from the first answer, not from the start of the engine
        elif not window or sample.num_rows > window[-1].num_rows:
            self._last_answer_s = sample.at_s
        if len(window) > 1 and sample.at_s - window[-2].at_s < SAMPLE_EVERY_S:
            window.pop()  # the newest replaces one that is too close to the one before
        window.append(sample)
        while len(window) > 2 and sample.at_s - window[1].at_s >= WINDOW_S:
            window.popleft()

    def _rate(self, counts: Sequence[int]) -> float:
        seconds = self._window[-1].at_s - self._window[0].at_s
        return max(0, counts[-1] - counts[0]) / seconds if seconds > 0 and not self._was_stalled else 0.0

    def _stalled_since(self, status: RunStatus, monotonic_s: float, now: float) -> float | None:
        down = [endpoint for endpoint in status.stage.endpoints if endpoint.is_down]
        is_all_down = bool(down) and len(down) == len(status.stage.endpoints)
        if monotonic_s - self._last_answer_s < MIN_STALL_S or not (is_all_down or status.stage.outage):
            return None
        return max(now - (monotonic_s - self._last_answer_s), 0.0) if self._window[-1].num_rows else _first(status, now)

    def _left_s(self, counters: Counters, sample: _Sample) -> tuple[float, float] | None:
        """
        Return the ends of a range that holds the time left, if the speed stays what it was in the window.

        With the rate r in the window, the rows left n and a relative spread s: ``n / (r · (1 + s))`` and
        ``n / (r · (1 - s))``. s is the larger of ``2 / √(answers)``, for answers that come at random, and Student's
        95 % interval of the mean rate of the blocks.
        """
        if sample.at_s - self._is_back_s < BLOCK_S:
            return None
        num_left = self._title.num_rows - counters.num_rows
        num_answers = sample.num_rows - self._window[0].num_rows
        rate = self._rate([each.num_rows for each in self._window])
        if num_left <= 0 or sample.num_rows < MIN_ANSWERS_FOR_ETA or rate <= 0:
            return None
        spread = max(2 / math.sqrt(max(1, num_answers)), _spread(self._window))
        spread = min(MAX_SPREAD, max(MIN_SPREAD, spread))
        return num_left / (rate * (1 + spread)), num_left / (rate * (1 - spread))

    def _expected_cost(self, counters: Counters, sample: _Sample) -> float | None:
        if not self._title.has_prices or sample.num_rows < MIN_ANSWERS_FOR_ETA:
            return None
        num_left = max(0, self._title.num_rows - counters.num_rows)
        per_row = self._title.cost(sample.input_tokens, sample.output_tokens) / sample.num_rows
        return self._title.cost(counters.input_tokens, counters.output_tokens) + num_left * per_row

    def _endpoint(self, status: EndpointStatus) -> EndpointView:
        before = next(
            (each for each in self._window[0].endpoints if each.url == status.url), EndpointStatus(status.url)
        )
        answered = status.num_answered - before.num_answered
        limited = status.num_rate_limited - before.num_rate_limited
        sends = answered + status.num_failed - before.num_failed
        pairs = zip_longest(status.latencies, before.latencies, fillvalue=0)
        recent = [new - old for new, old in pairs]
        latencies = recent if any(recent) else status.latencies
        return EndpointView(
            status,
            rows_per_s=self._rate([before.num_answered, status.num_answered]) if len(self._window) > 1 else 0.0,
            limited_share=max(0, limited) / sends if sends > 0 else 0.0,
            p50_s=percentile_s(latencies, 0.50),
            p95_s=percentile_s(latencies, 0.95),
            p99_s=percentile_s(latencies, 0.99),
        )


def _sample(status: RunStatus, run: Counters, monotonic_s: float) -> _Sample:
    return _Sample(
        monotonic_s,
        run.num_rows - run.num_resumed_rows,
        run.input_tokens - run.resumed_input_tokens,
        run.output_tokens - run.resumed_output_tokens,
        status.stage.endpoints,
    )


def _first(status: RunStatus, now: float) -> float:
    """Return since when the first requests of a run have been waiting."""
    times = [endpoint.since for endpoint in status.stage.endpoints if endpoint.since is not None]
    if status.stage.outage is not None:
        times.append(status.stage.outage.since)
    return min(times, default=now)


def _spread(window: Sequence[_Sample]) -> float:
    """Return the relative half width of the 95 % interval of the mean rate, from the rates of blocks of `BLOCK_S`."""
    ends = [window[0]]
    for sample in window:
        if sample.at_s - ends[-1].at_s >= BLOCK_S:
            ends.append(sample)
    rates = [(new.num_rows - old.num_rows) / (new.at_s - old.at_s) for old, new in pairwise(ends)]
    if len(rates) < 3 or fmean(rates) <= 0:
        return 0.0
    return student_t(len(rates) - 1) * stdev(rates) / math.sqrt(len(rates)) / fmean(rates)
