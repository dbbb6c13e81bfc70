"""
What the server has done so far, shared by all rows of a run.

Tells a row's own failure from a run that cannot succeed. Knows errors; knows nothing of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from nemo_llm_stage.errors import (
    BadRequestError,
    ConnectionDroppedError,
    ConnectionFailedError,
    FatalError,
    RequestError,
    RunError,
)

NUM_REFUSED_TO_STOP = 20
"""As many rows refused by the server, and none answered yet, stop the run: the settings are wrong, not the rows."""

NUM_FATAL_TO_STOP = 3
"""As many fatal errors in a row stop a run that has had answers: one alone may be a gateway refusing one text."""

NUM_DEATHS_TO_SUSPECT = 2
"""A row that was under way at as many deaths of the server is asked beside no other such row from then on."""

NUM_DEATHS_TO_QUARANTINE = 3
"""One more, and it is not asked again."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """
    Why rows wait, for people to look at.

    Attributes:
        at_monotonic_s: When a row was last put off.
        error: The error it had, as ``kind: message``.
    """

    at_monotonic_s: float
    error: str


class Health:
    """Tells a row's own failure from a run that cannot succeed, by what the server has done so far."""

    def __init__(self) -> None:
        self._has_answered = False
        self._num_refused = 0
        self._num_fatal_in_a_row = 0

        self.trouble: Trouble | None = None
        self.one_suspect_at_a_time = asyncio.Lock()
        self._waiting: set[asyncio.Future[None]] = set()

    async def wait_for_server(self, timeout_s: float) -> None:
        """Return when the server has answered a row, and at the latest after so long."""
        answered = asyncio.get_running_loop().create_future()
        self._waiting.add(answered)
        try:
            async with asyncio.timeout(timeout_s):
                await answered
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(answered)

    def note_answer(self) -> None:
        """The server answered a row."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._has_answered = True
        self._num_fatal_in_a_row = 0

    def check(self, error: RequestError) -> None:
        """
        Take note of a failed request.

        Raises:
            FatalError: No row can succeed: a bad key or model before any answer, or again and again.
            RunError: The server refused the first `NUM_REFUSED_TO_STOP` rows and answered none.
        """
        if isinstance(error, FatalError):
            self._num_fatal_in_a_row += 1
            if not self._has_answered or self._num_fatal_in_a_row >= NUM_FATAL_TO_STOP:
                raise error
        if isinstance(error, BadRequestError) and not self._has_answered:
            self._num_refused += 1
            if self._num_refused >= NUM_REFUSED_TO_STOP:
                raise RunError(
                    f"the server refused the first {self._num_refused} rows and answered none; the last with: {error}"
                )


def count_deaths(failures: Sequence[str]) -> int:
    """
    Return how often the server died while it had a row: its connection dropped, and then none could be made.

    Args:
        failures: The kind of each failed send of the row, oldest first.
    """
    dropped, failed = ConnectionDroppedError.kind, ConnectionFailedError.kind
    return sum(pair == (dropped, failed) for pair in pairwise(failures))
