"""
What the servers of one client have done so far, told by all requests to them.

Tells a request's own failure from an outage, and an outage from a run that cannot succeed. Lives on one event loop.
Knows errors; knows nothing of prompts or values.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from nemo_llm_stage.client.clock import SYSTEM_CLOCK, Clock
from nemo_llm_stage.client.retry import ALONGSIDE, Sends
from nemo_llm_stage.errors import (
    ConnectionDroppedError,
    ConnectionFailedError,
    Outages,
    QuarantinedError,
    RateLimitError,
    RunError,
    TransientError,
)
from nemo_llm_stage.rows.gate import Gate

NUM_FAILED_TO_STOP = 20
"""So many requests that fail in the same way, and none answered yet, stop the run while others are in flight."""

NUM_SAME_FAILURES = 5
"""Sends of one request that fail in the same way before that is the request's own failure, not the server's."""

NUM_RECENT = 20
"""Outcomes before a request's first failure that tell how the server did then."""

MIN_ANSWERED_SHARE = 0.2
"""Share of other requests' sends that are answered while a request fails, from which on the request is to blame."""

TROUBLE_SHOWN_S = 5.0
"""A trouble is shown for so long after its end, so that one that lasts does not flicker."""

NUM_DEATHS_TO_SUSPECT = 2
"""A request in flight at so many deaths of the server is sent only while no other suspect is in flight."""

NUM_DEATHS_TO_QUARANTINE = 3
"""A request in flight at so many deaths of the server is not sent again."""

_OUTAGE_STATUSES = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class Trouble:
    """
    Why requests wait, for people to look at.

    Attributes:
        at_monotonic_s: When a request was last put off.
        error: Its error, as ``kind: message``.
        until_monotonic_s: When it is sent again.
        asked_s: Seconds that the server asked for; None where it asked for none.
        since_monotonic_s: When the first request was put off.
    """

    at_monotonic_s: float
    error: str
    until_monotonic_s: float = 0.0
    asked_s: float | None = None
    since_monotonic_s: float = 0.0

    def describe(self, now_monotonic_s: float) -> str:
        """Return the error, when the next try comes, and what the server asked for where that is something else."""
        left_s = max(0.0, self.until_monotonic_s - now_monotonic_s)
        planned_s = self.until_monotonic_s - self.at_monotonic_s
        asked = (
            "" if self.asked_s is None or self.asked_s <= planned_s else f" (the server asks for {self.asked_s:,.0f} s)"
        )
        return f"{self.error}; next try in {left_s:,.0f} s{asked}"


@dataclass(slots=True)
class _Notes:
    """
    What is remembered with a request that failed.

    Attributes:
        num_answers: Of other requests, `NUM_RECENT` outcomes before the first of the same failures.
        num_failures: Likewise.
        outage: The outage that a dropped connection of this request may have been part of; None for none.
        server: The server whose outage that was.
        num_deaths: Deaths of the server while it had this request: a dropped connection, and then an outage.
    """

    num_answers: int = 0
    num_failures: int = 0
    outage: int | None = None
    server: Outages | None = None
    num_deaths: int = 0


class Health:
    """
    The outcomes of the requests to one client's servers. They are down when no server accepts a connection.

    Args:
        clock: Time and sleep.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._trouble: Trouble | None = None
        self._clock = clock
        self._gate = Gate(clock)
        self._num_answers = 0
        self._num_failures = 0
        self._recent: deque[bool] = deque(maxlen=NUM_RECENT)
        self._num_failed_requests = 0
        self._first_signature: str | None = None
        self._is_uniform = True
        self._suspects = asyncio.Lock()

    @property
    def trouble(self) -> str | None:
        """Why requests wait, and until when; None where none has waited in the last `TROUBLE_SHOWN_S`."""
        trouble = self.current_trouble
        return None if trouble is None else trouble.describe(self._clock.monotonic())

    @property
    def current_trouble(self) -> Trouble | None:
        """Likewise, for programs."""
        trouble = self._trouble
        is_over = trouble is None or self._clock.monotonic() > trouble.until_monotonic_s + TROUBLE_SHOWN_S
        return None if is_over else trouble

    @property
    def is_down(self) -> bool:
        """Whether the server refuses connections."""
        return self._gate.is_closed

    async def wait_until_up(self, give_up_at_monotonic_s: float) -> bool:
        """Return once the server may be up; see `Gate.wait`."""
        return await self._gate.wait(give_up_at_monotonic_s)

    def end_probe(self) -> None:
        """Let another request be the probe, if the running task was it."""
        self._gate.end_probe()

    def alongside(self, sends: Sends) -> AbstractAsyncContextManager[Any]:
        """
        Return what to enter before a request is sent again: a lock for one that may have killed the server.

        Raises:
            QuarantinedError: The server died each time it had this request.
        """
        notes: _Notes = sends.notes
        self._count_death(notes)
        if notes.num_deaths >= NUM_DEATHS_TO_QUARANTINE:
            error = QuarantinedError(
                f"the server died {notes.num_deaths} times while it had this row; it is not sent again"
            )
            error.failures = sends.kinds
            raise error
        return self._suspects if notes.num_deaths >= NUM_DEATHS_TO_SUSPECT else ALONGSIDE

    def note_answer(self) -> None:
        """Remember that the server answered a request."""
        self._num_answers += 1
        self._recent.append(True)
        if self._gate.is_closed:
            self._gate.open()
            self._trouble = None

    def note_failure(self, sends: Sends, num_in_flight: int, *, is_probe: bool) -> bool:
        """
        Remember a failed send.

        Args:
            sends: The failed sends of one request, the new one included.
            num_in_flight: Other requests to this server that are in flight.
            is_probe: Whether it was sent while the server was down.

        Returns:
            Whether the request itself is to blame: it failed in the same way `NUM_SAME_FAILURES` times, while the
            server answered at least one in five sends of the others.

        Raises:
            RunError: The server has answered nobody so far and fails every request in the same way.
        """
        notes = self._notes_of(sends)
        error = sends.error
        if not isinstance(error, TransientError):
            if is_probe:
                self._gate.open()
            return False
        if isinstance(error, ConnectionFailedError):
            if not sends.goes_elsewhere and self._gate.note_refused(is_probe=is_probe):
                self.note_pause(sends, self._gate.next_probe_monotonic_s - self._clock.monotonic())
        elif isinstance(error, ConnectionDroppedError):
            self._note_dropped(notes, error, is_probe=is_probe)
        elif is_probe:
            self._gate.open()
        self._num_failures += 1
        self._recent.append(False)
        if self._first_signature is None:
            self._first_signature = sends.signature
        self._is_uniform &= sends.signature == self._first_signature
        if sends.num_same < NUM_SAME_FAILURES or _is_outage(error):
            return False
        if not self._num_answers:
            self._check_start(error, num_in_flight)
            return False
        return self._is_to_blame(sends, notes)

    def note_pause(self, sends: Sends, pause_s: float) -> None:
        """Remember, for people to see, that a request waits to be sent again."""
        now = self._clock.monotonic()
        asked_s = getattr(sends.error, "retry_after_s", None)
        current = self.current_trouble
        since = now if current is None else current.since_monotonic_s
        self._trouble = Trouble(now, f"{sends.error.kind}: {sends.error}", now + pause_s, asked_s, since)

    def _notes_of(self, sends: Sends) -> _Notes:
        if sends.notes is None:
            sends.notes = _Notes()
            self._num_failed_requests += 1
        notes: _Notes = sends.notes
        if sends.num_same == 1:
            num_answered = sum(self._recent)
            notes.num_answers = self._num_answers - num_answered
            notes.num_failures = self._num_failures - (len(self._recent) - num_answered)
        return notes

    def _note_dropped(self, notes: _Notes, error: ConnectionDroppedError, *, is_probe: bool) -> None:
        self._count_death(notes)
        if error.server is not None:
            notes.server, notes.outage = error.server, error.server.num_outages - error.server.is_down
            return
        notes.server = self._gate
        is_late = self._gate.is_closed and not is_probe  # the outage that it is part of is known already
        notes.outage = self._gate.num_outages - is_late
        if is_probe or notes.num_deaths >= NUM_DEATHS_TO_SUSPECT:
            self._gate.note_death()

    def _count_death(self, notes: _Notes) -> None:
        if notes.outage is not None and notes.server is not None and notes.server.num_outages > notes.outage:
            notes.outage = None
            notes.num_deaths += 1

    def _is_to_blame(self, sends: Sends, notes: _Notes) -> bool:
        num_answered = self._num_answers - notes.num_answers
        num_failed = self._num_failures - notes.num_failures - sends.num_same
        return num_answered > 0 and num_answered >= MIN_ANSWERED_SHARE * (num_answered + num_failed)

    def _check_start(self, error: TransientError, num_in_flight: int) -> None:
        if self._is_uniform and (not num_in_flight or self._num_failed_requests >= NUM_FAILED_TO_STOP):
            raise RunError(
                f"the server fails every request in the same way ({self._num_failures} sends of "
                f"{self._num_failed_requests} rows, no answer yet): {error}"
            )


def _is_outage(error: TransientError) -> bool:
    """Whether a failure says nothing of the request: no connection, a rate limit, or a gateway without its server."""
    return isinstance(error, ConnectionFailedError | RateLimitError) or error.status in _OUTAGE_STATUSES
