"""Everything that a display of a running job shows, as numbers. Knows nothing of how it looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.servers.fleet import FleetView
from nemo_llm_stage.stage.status import StageStatus
from nemo_llm_stage.worker.engine import Phase


@dataclass(frozen=True, slots=True)
class JobTitle:
    """
    What runs.

    Attributes:
        columns: Names of the generated columns.
        models: That are asked.
        num_rows: Of the whole job.
        is_exact: Whether `num_rows` was counted; else it is an estimate.
        price_input: Dollars for a million input tokens; None if not given.
        price_output: Likewise for output tokens.
    """

    columns: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    num_rows: int = 0
    is_exact: bool = True
    price_input: float | None = None
    price_output: float | None = None

    @property
    def has_prices(self) -> bool:
        """Whether costs can be told."""
        return self.price_input is not None or self.price_output is not None

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """Return the dollars that these tokens cost."""
        return (input_tokens * (self.price_input or 0.0) + output_tokens * (self.price_output or 0.0)) / 1e6


@dataclass(frozen=True, slots=True)
class EndpointView:
    """
    One server, as it was over the last minute.

    Attributes:
        status: Since the start.
        rows_per_s: Answers per second.
        limited_share: Share of the sends that were refused for their rate (429), from 0 to 1.
        p50_s: Half of the answers took at most so long; None before the first.
        p95_s: Likewise 95 %.
        p99_s: Likewise 99 %.
    """

    status: EndpointStatus
    rows_per_s: float = 0.0
    limited_share: float = 0.0
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None


@dataclass(frozen=True, slots=True)
class View:
    """
    A running job at one moment. Rates are of the last minute, and of this run alone.

    Attributes:
        title: What runs.
        now: Unix seconds.
        elapsed_s: Since this run began.
        counters: Of the whole job so far.
        run: Of this run, without what earlier runs had paid.
        phase: What the run does.
        waits_for: What it waits for while it starts; None otherwise.
        scanned: Bytes of the input that were looked at, and of how many, while that lasts; None otherwise.
        fleet: How far the servers are that the job starts, while it waits for them; None otherwise.
        drain_left_s: For how long requests in flight are still waited for while it stops; None otherwise.
        rows_per_s: Rows that were generated; None before the first.
        input_per_s: Tokens.
        output_per_s: Tokens.
        left_s: Shortest and longest time that is probably left; None where nobody can tell.
        stalled_since: Unix seconds since when no server has answered; None if one does.
        cost: Dollars so far, earlier runs included; None without prices.
        expected_cost: Of the whole job; None where nobody can tell.
        stage: Requests in flight, and why others wait.
        endpoints: The servers.
        rows: A few of the newest finished rows; see `nemo_llm_stage.worker.samples`.
    """

    title: JobTitle = field(default_factory=JobTitle)
    now: float = 0.0
    elapsed_s: float = 0.0
    counters: Counters = field(default_factory=Counters)
    run: Counters = field(default_factory=Counters)
    phase: Phase = "starting"
    waits_for: str | None = None
    scanned: tuple[int, int] | None = None
    fleet: FleetView | None = None
    drain_left_s: float | None = None
    rows_per_s: float | None = None
    input_per_s: float = 0.0
    output_per_s: float = 0.0
    left_s: tuple[float, float] | None = None
    stalled_since: float | None = None
    cost: float | None = None
    expected_cost: float | None = None
    stage: StageStatus = field(default_factory=StageStatus)
    endpoints: tuple[EndpointView, ...] = ()
    rows: tuple[Mapping[str, Any], ...] = ()

    @property
    def stalled_s(self) -> float | None:
        """For how long no server has answered."""
        return None if self.stalled_since is None else max(0.0, self.now - self.stalled_since)

    @property
    def down(self) -> tuple[EndpointStatus, ...]:
        """The servers that cannot be reached."""
        return tuple(endpoint.status for endpoint in self.endpoints if endpoint.status.is_down)
