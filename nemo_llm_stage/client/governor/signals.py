"""What a governor sees and what it says: the nouns of adaptive limits. Knows nothing of how a limit is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nemo_llm_stage.client.governor.metrics import ServerLoad

Mode = Literal["fixed", "metrics", "throughput", "refusals"]
"""
What a limit follows: a number of the user's, the server's own metrics, the work done per second, or its refusals.
"""

Bottleneck = Literal["server", "kv cache", "rate limit", "client cpu", "open files", "input", "unknown"]
"""What keeps the work per second from growing. "input": there are not enough rows to send."""

BUSY_SHARE = 0.9
"""Share of a core from which on the client's own thread is the bottleneck."""

SATURATED_SHARE = 0.8
"""
Share of the limit that was in flight at some moment; below, the limit was not what held requests back, so nothing can
be learned of it. Source: inspect_ai's adaptive concurrency.
"""


@dataclass(frozen=True, slots=True)
class Signals:
    """
    What a client saw since the last signals.

    Attributes:
        now_s: Seconds of the client's monotonic clock.
        in_flight: Requests in flight now.
        peak_in_flight: The most of them at one time.
        tokens_in_flight: Expected tokens of the requests in flight, as `ExpectedTokens` counts them.
        num_waiting: Requests that wait for a permit.
        is_token_bound: Whether they wait because of the limit on tokens.
        load: What the server's metrics say; None where nothing new was read.
        client_busy: Share of a core that the client's thread used, 0 to 1.
        is_out_of_files: Whether the process is near the most files, and so connections, that it may open.
    """

    now_s: float
    in_flight: int
    peak_in_flight: int
    tokens_in_flight: float = 0.0
    num_waiting: int = 0
    is_token_bound: bool = False
    load: ServerLoad | None = None
    client_busy: float = 0.0
    is_out_of_files: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """
    The next limit, and why.

    Attributes:
        limit: Requests; a fraction is kept for the next move.
        reason: For people.
        bottleneck: What holds the work back.
    """

    limit: float
    reason: str
    bottleneck: Bottleneck


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """
    How a limit stands, for people to look at.

    Attributes:
        limit: Most requests in flight.
        mode: What the limit follows.
        reason: Why it is what it is.
        bottleneck: What holds the work back.
        max_tokens: Most expected tokens in flight; None for no such limit.
        moved: Why it was moved the last time.
        held_s: Bottleneck → seconds, about, for which it held the work back.
        prompt_speed: Prompt tokens that the server computes a second, on average; None where it does not tell.
    """

    limit: int
    mode: Mode
    reason: str
    bottleneck: Bottleneck
    max_tokens: float | None = None
    moved: str = "the start"
    held_s: Mapping[str, int] = field(default_factory=dict)
    prompt_speed: float | None = None
