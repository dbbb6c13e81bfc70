"""
The metrics of a job: names, and their values at one moment.

Names follow the OpenTelemetry conventions for generative AI where they have one; the others begin with
``nemo_llm_stage``. Pure: reads the figures that the driver has anyway. Knows nothing of who gets them.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/ and, for the names in Prometheus,
https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args
from urllib.parse import urlsplit

from nemo_llm_stage.client.endpoint_status import BUCKETS_PER_DOUBLING, MIN_LATENCY_S, EndpointState, EndpointStatus
from nemo_llm_stage.report.progress.view import View
from nemo_llm_stage.text import one_line
from nemo_llm_stage.worker.engine import Phase

FIRST_DOUBLING, NUM_BOUNDS = 3, 18
BOUNDS_S = tuple(MIN_LATENCY_S * 2 ** (FIRST_DOUBLING + i) for i in range(NUM_BOUNDS))
"""Upper bounds of the latency buckets: 8 ms, 16 ms, … 17.5 minutes."""

_UNIT_SUFFIXES = {"s": "_seconds", "USD": "_dollars"}


@dataclass(frozen=True, slots=True)
class Family:
    """
    One metric.

    Attributes:
        name: As OpenTelemetry writes it.
        kind: ``counter`` only rises within a run. ``summary`` has a sum and a count, ``histogram`` buckets as well.
        help: What it counts.
        labels: Names of its labels, as OpenTelemetry writes them, beside ``nemo_llm_stage.output``.
        unit: As UCUM writes it; units in braces count things.
    """

    name: str
    kind: Literal["counter", "gauge", "summary", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    unit: str = "1"

    @property
    def prometheus_name(self) -> str:
        """The name in Prometheus; a counter's ends with ``_total``."""
        return prometheus_word(self.name) + _UNIT_SUFFIXES.get(self.unit, "") + ("_total" * (self.kind == "counter"))

    @property
    def series_names(self) -> tuple[str, ...]:
        """The names of its series in Prometheus."""
        parts = {"summary": ("_sum", "_count"), "histogram": ("_bucket", "_sum", "_count")}.get(self.kind, ("",))
        return tuple(self.prometheus_name + part for part in parts)


@dataclass(frozen=True, slots=True)
class Figure:
    """
    One value of a metric.

    Attributes:
        family: The metric.
        labels: In the order of `Family.labels`.
        value: Of a counter or gauge; of a summary or histogram the sum.
        counts: Of a histogram: how many values each bucket of `BOUNDS_S` has, and last those beyond. Of a summary: how
            many there are.
    """

    family: Family
    labels: tuple[str, ...]
    value: float
    counts: tuple[int, ...] = ()

    @property
    def num_values(self) -> int:
        """How many values a summary or histogram has."""
        return sum(self.counts)

    def series(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """Yield name, labels and value of each series in Prometheus; what a histogram's bucket counts adds up."""
        labels = dict(zip(map(prometheus_word, self.family.labels), self.labels, strict=True))
        name = self.family.prometheus_name
        if not self.counts:
            yield name, labels, self.value
            return
        if self.family.kind == "histogram":
            for bound, num in zip((*BOUNDS_S, math.inf), accumulate(self.counts), strict=True):
                yield f"{name}_bucket", labels | {"le": "+Inf" if bound == math.inf else f"{bound:g}"}, num
        yield f"{name}_sum", labels, self.value
        yield f"{name}_count", labels, self.num_values


OUTPUT = "nemo_llm_stage.output"
"""The label that tells the jobs of one cluster apart: the output folder."""

_SERVER = ("nemo_llm_stage.server",)
_MODEL = "gen_ai.request.model"

TOKENS = Family(
    "gen_ai.client.token.usage",
    "summary",
    "Tokens of the answers of this run.",
    ("gen_ai.token.type", _MODEL),
    "{token}",
)
DURATION = Family(
    "gen_ai.client.operation.duration",
    "histogram",
    "Time from sending a request to its whole answer; the sum is at most 9 % off.",
    (*_SERVER, "server.address", "server.port", "gen_ai.operation.name", _MODEL),
    "s",
)
ROWS = Family("nemo_llm_stage.rows", "counter", "Finished rows of the job, earlier runs included.", ("outcome",))
PLANNED = Family("nemo_llm_stage.rows.planned", "gauge", "Rows of the job.")
FAILURES = Family("nemo_llm_stage.failures", "counter", "Failed rows of the job by kind of error.", ("error.type",))
REQUESTS = Family(
    "nemo_llm_stage.requests", "counter", "Sends of this run by what became of them.", (*_SERVER, "result")
)
IN_FLIGHT = Family("nemo_llm_stage.requests.in_flight", "gauge", "Requests in flight.", _SERVER)
LIMIT = Family("nemo_llm_stage.requests.limit", "gauge", "Most requests in flight at a server.", _SERVER)
STATE = Family("nemo_llm_stage.server.state", "gauge", "1 for the state that a server is in.", (*_SERVER, "state"))
RETRYING = Family("nemo_llm_stage.rows.retrying", "gauge", "Rows that wait to be sent again.")
WASTED_REQUESTS = Family("nemo_llm_stage.requests.wasted", "counter", "Sends of this run that no row could use.")
WASTED_TOKENS = Family("nemo_llm_stage.tokens.wasted", "counter", "Output tokens of this run that no row could use.")
COST = Family("nemo_llm_stage.cost", "counter", "What the job cost, earlier runs included; with prices.", (), "USD")
PHASE = Family("nemo_llm_stage.phase", "gauge", "1 for what the run does.", ("phase",))
LEFT = Family("nemo_llm_stage.time_left", "gauge", "Estimate of the time to the end; missing if unknown.", (), "s")

FAMILIES = (
    *(ROWS, PLANNED, FAILURES, REQUESTS, IN_FLIGHT, LIMIT, STATE, TOKENS, DURATION),
    *(RETRYING, WASTED_REQUESTS, WASTED_TOKENS, COST, PHASE, LEFT),
)


def prometheus_word(name: str) -> str:
    """Return a name of OpenTelemetry as Prometheus writes it."""
    return name.replace(".", "_")


def figures_of(view: View) -> Iterator[Figure]:
    """Yield the value of every metric, as `view` has it; those of one metric come together."""
    counters, run = view.counters, view.run
    for outcome in ("answered", "failed", "skipped", "dropped"):
        yield Figure(ROWS, (outcome,), getattr(counters, f"num_{outcome}"))
    yield Figure(PLANNED, (), view.title.num_rows)
    for kind, num in sorted(counters.errors.items()):
        yield Figure(FAILURES, (one_line(kind),), num)
    yield from _server_figures(view)
    num_answers = sum(endpoint.status.num_answered for endpoint in view.endpoints)
    model = _model(view)
    yield Figure(TOKENS, ("input", model), run.input_tokens, (num_answers,))
    yield Figure(TOKENS, ("output", model), run.output_tokens, (num_answers,))
    yield Figure(RETRYING, (), view.stage.num_retrying)
    yield Figure(WASTED_REQUESTS, (), run.num_wasted_attempts)
    yield Figure(WASTED_TOKENS, (), run.wasted_output_tokens)
    if view.cost is not None:
        yield Figure(COST, (), view.cost)
    for phase in get_args(Phase):
        yield Figure(PHASE, (phase,), float(view.phase == phase))
    if view.left_s is not None:
        yield Figure(LEFT, (), sum(view.left_s) / 2)


def _server_figures(view: View) -> Iterator[Figure]:
    servers = {server_of(endpoint.status.url): endpoint.status for endpoint in view.endpoints}
    for server, status in servers.items():
        num_others = status.num_failed - status.num_rate_limited - status.num_refused
        for result, num in (
            ("answered", status.num_answered),
            ("rate_limited", status.num_rate_limited),
            ("refused", status.num_refused),
            ("failed", num_others),
        ):
            yield Figure(REQUESTS, (server, result), num)
    for server, status in servers.items():
        yield Figure(IN_FLIGHT, (server,), status.in_flight)
    for server, status in servers.items():
        yield Figure(LIMIT, (server,), status.limit or 0)
    for server, status in servers.items():
        for state in get_args(EndpointState):
            yield Figure(STATE, (server, state), float(status.state == state))
    for server, status in servers.items():
        yield _duration(server, status, _model(view))


def _duration(server: str, status: EndpointStatus, model: str) -> Figure:
    parts = urlsplit(status.url)
    labels = (server, parts.hostname or "", str(parts.port or ""), "chat", model)
    sum_s = sum(
        num * MIN_LATENCY_S * 2 ** ((index + 0.5) / BUCKETS_PER_DOUBLING) for index, num in enumerate(status.latencies)
    )
    return Figure(DURATION, labels, sum_s, _coarse(status.latencies))


def _coarse(latencies: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many answers each bucket of `BOUNDS_S` has."""
    ends = [(FIRST_DOUBLING + index) * BUCKETS_PER_DOUBLING for index in range(NUM_BOUNDS)]
    starts = [0, *ends]
    return tuple(sum(latencies[start:end]) for start, end in zip(starts, [*ends, None], strict=True))


def _model(view: View) -> str:
    return one_line(",".join(view.title.models))


def server_of(url: str) -> str:
    """Return a server's host, port and path, which tell it from all others; no credentials."""
    parts = urlsplit(url)
    return one_line(f"{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/').removesuffix('/v1')}") or "unknown"
