"""
Requests that are open here and that their server does not have: it has lost them, and will never answer. Pure.

Source: SGLang issue 33858: a queue overflows, the metrics show nothing running and nothing waiting, the health is good,
the connections stay open, and no answer ever comes.
"""

from __future__ import annotations

from nemo_llm_stage.client.governor.metrics import ServerLoad

NUM_SHOWN = 10
"""Readings in a row that must have shown the requests before: then the metrics are those of the only server."""

SHOWN_SHARE = 0.8
MANY = 16
"""Of fewer open requests, the ghosts among them may be the larger part."""

MIN_SILENCE_S = 30.0
"""A server may show nothing for a while, e.g. while it makes a prompt of images. The silence is also longer than nearly
every answer took."""

NUM_EMPTY = 3


class Ghosts:
    """Looks at one reading of a server's metrics after another."""

    def __init__(self) -> None:
        self._num_shown = 0
        self._num_empty = 0
        self._empty_since_s = 0.0
        self._output_tokens = 0.0

    def sent_before(self, load: ServerLoad, in_flight: int, now_s: float, slowest_s: float) -> float | None:
        """
        Return the time before which every request that is still open is a ghost; None where there is none.

        Args:
            load: The reading.
            in_flight: Requests that were open from the question to the answer.
            now_s: The time now.
            slowest_s: What nearly every answer took at most.
        """
        is_same = load.output_tokens is None or load.output_tokens >= self._output_tokens
        self._output_tokens = load.output_tokens or 0.0
        shown = load.running + load.waiting
        is_part = shown < SHOWN_SHARE * in_flight
        if not is_same or not load.is_queue or (shown > 0 and is_part and in_flight >= MANY):
            self._num_shown = self._num_empty = 0
        elif shown > 0:
            self._num_shown, self._num_empty = self._num_shown + (in_flight > 0 and not is_part), 0
        elif in_flight > 0 and self._num_shown >= NUM_SHOWN:
            if not self._num_empty:
                self._empty_since_s = now_s
            self._num_empty += 1
            if self._num_empty >= NUM_EMPTY and now_s - self._empty_since_s >= max(MIN_SILENCE_S, slowest_s):
                return self._empty_since_s
        return None
