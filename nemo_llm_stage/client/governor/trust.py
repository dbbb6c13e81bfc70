"""Whether a server's metrics are those of the server that our requests go to. Pure."""

from __future__ import annotations

from nemo_llm_stage.client.governor.by_queue import MAX_FRONT_SHARE
from nemo_llm_stage.client.governor.metrics import ServerLoad

NUM_MISSING, NUM_SHOWN_AGAIN = 3, 30
"""Readings in a row that show too few of our requests until the metrics are not trusted, or enough until they are."""

MIN_SHOWN_SHARE = 0.65
"""Of the requests in flight, averaged: one of two replicas shows half of them."""


class Trust:
    """
    Whether the metrics are those of the server that our requests go to, and not of one replica of several.

    Attributes:
        is_trusted: Likewise.
        reason: Why not; None where they are.
    """

    def __init__(self) -> None:
        self.is_trusted = True
        self.reason: str | None = None
        self._shown_share = 1.0
        self._num_missing = self._num_shown = 0
        self._output_tokens = 0.0
        self._num_back = 0

    def note(self, load: ServerLoad, in_flight: int) -> None:
        """Compare a reading with the requests in flight."""
        shown = load.running + load.waiting
        if load.output_tokens is not None:
            self._num_back += load.output_tokens < self._output_tokens
            self._output_tokens = load.output_tokens
        if in_flight < 8:
            return
        self._shown_share = 0.5 * self._shown_share + 0.5 * min(1.0, shown / in_flight)
        is_missing = self._shown_share < MIN_SHOWN_SHARE or self._num_back >= 2
        self._num_missing = self._num_missing + 1 if is_missing and shown <= (1 - MAX_FRONT_SHARE) * in_flight else 0
        self._num_shown = self._num_shown + 1 if shown > (1 - MAX_FRONT_SHARE) * in_flight else 0
        if self.is_trusted and self._num_missing >= NUM_MISSING:
            self.is_trusted = False
            self.reason = (
                f"the metrics show {shown:.0f} of {in_flight} requests in flight, so there are several servers behind "
                "the address; the limit follows the work per second"
            )
        elif not self.is_trusted and self._num_shown >= NUM_SHOWN_AGAIN:
            self.is_trusted, self.reason, self._num_back = True, None, 0
