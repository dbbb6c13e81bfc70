"""A request in flight at a governed server: who sends it enters it, so that it is counted. Knows nothing of limits."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from nemo_llm_stage.client.generation import GenerationConfig

if TYPE_CHECKING:
    from nemo_llm_stage.client.governor.governed import Governed


class Sending:
    """
    A request in flight at a governed server.

    Attributes:
        num_bytes: Its length.
        config: Its parameters.
        sent_at_s: Seconds of the client's clock.
        taken_then: Requests and tokens that had been sent by then, this one among them.
    """

    __slots__ = ("_cost", "_governed", "config", "num_bytes", "sent_at_s", "taken_then")

    def __init__(self, governed: Governed, num_bytes: int, config: GenerationConfig) -> None:
        self._governed = governed
        self._cost = 0.0
        self.num_bytes = num_bytes
        self.config = config
        self.sent_at_s = 0.0
        self.taken_then = (0.0, 0.0)

    def __enter__(self) -> Self:
        """It is sent."""
        self.sent_at_s = self._governed.clock.monotonic()
        self._cost = self._governed.begin(self.num_bytes, self.config, self.sent_at_s)
        self.taken_then = self._governed.taken
        return self

    @property
    def timeout_s(self) -> float | None:
        """Seconds that it gets; None for the client's own."""
        return self._governed.timeout_s(self.config)

    def note_headers(self, headers: Mapping[bytes, bytes]) -> None:
        """Take note of what its response says of rate limits."""
        self._governed.note_headers(self, headers)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It has ended."""
        self._governed.end(self._cost)
