"""
How long a request may take at a server that is slow for everybody: longer than usual, or it would come too late.

A request that times out while it waits in a long queue is sent again, and makes the queue longer; the server computes
the one that nobody waits for, too. Pure.
"""

from __future__ import annotations

from nemo_llm_stage.client.generation import GenerationConfig
from nemo_llm_stage.client.governor.expected import RunningMean

SLOW_S = 60.0
"""Answers that take longer than this on average give requests more time."""

USUAL_S = 600.0
"""What a request gets at least: the client's default."""

FACTOR = 2.0
"""Times what an answer of the most tokens takes at the pace that was seen."""

MAX_TIMEOUT_S = 6 * 3600.0


class Timeouts:
    """
    Learns how long answers take.

    Attributes:
        is_slow: Whether answers take so long that requests get more time.
    """

    def __init__(self) -> None:
        self.is_slow = False
        self._latency_s = RunningMean()
        self._output_tokens = RunningMean()

    def note_answer(self, latency_s: float, output_tokens: int) -> None:
        """Take an answer. Those before the first slow one need not be told."""
        self._latency_s.add(latency_s)
        self._output_tokens.add(max(1, output_tokens))
        self.is_slow = (self._latency_s.value or 0.0) >= SLOW_S

    def of(self, config: GenerationConfig) -> float | None:
        """Return the seconds that a request gets; None where the usual ones are enough."""
        if not self.is_slow:
            return None
        latency_s, tokens = self._latency_s.value or 0.0, self._output_tokens.value or 1.0
        factor = max(1.0, (config.max_tokens or tokens) / tokens)
        needed_s = min(MAX_TIMEOUT_S, FACTOR * latency_s * factor)
        return needed_s if needed_s > USUAL_S else None
