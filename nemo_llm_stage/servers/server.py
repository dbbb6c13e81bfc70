"""
One server over its life: placed, started, healthy, ended, started again, given up.

Knows a place that holds its processes; knows nothing of what a place is.
"""

from __future__ import annotations

from typing import Protocol

from nemo_llm_stage.servers.host import HostStatus
from nemo_llm_stage.servers.plan import ServerPlan

CALM_S = 600.0
"""A server that was healthy for so long has its restarts anew."""

PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
"""Before the first restart; before each further one twice as long."""


class Place(Protocol):
    """Where the processes of one server run."""

    def start(self) -> None:
        """End the processes that run, if any, and start them anew. Returns at once."""

    def status(self) -> HostStatus:
        """Return how they stand. Returns at once."""

    def begin_stop(self) -> None:
        """Ask the processes to end. Returns at once."""

    def close(self) -> None:
        """End the processes, return when they have ended, and give the place back."""


class Server:
    """
    One server.

    Args:
        number: From 1, for people.
        plan: What it is.
        place: Holds its processes.
        news: What happens to it is added here, a sentence each.
        now_s: Monotonic seconds.
    """

    def __init__(self, number: int, plan: ServerPlan, place: Place, news: list[str], now_s: float) -> None:
        self.status = HostStatus()
        self.has_failed = False
        self.was_healthy = False
        self._name = f"server {number}"
        self._plan, self._place, self._news = plan, place, news
        self._num_restarts = 0
        self._healthy_at_s = now_s
        self._restart_at_s: float | None = None
        place.start()

    @property
    def is_healthy(self) -> bool:
        """Whether requests may be sent to it."""
        return self.status.state == "healthy" and self._restart_at_s is None

    @property
    def why_failed(self) -> str:
        """Why it is given up."""
        return f"{self._name}: {self.status.why}. Its log: {self.status.log}"

    def look(self, now_s: float) -> None:
        """See how it stands, and start it again where it has ended."""
        if self.has_failed:
            return
        if self._restart_at_s is not None:
            if now_s >= self._restart_at_s:
                self._restart_at_s = None
                self._place.start()
            return
        before, self.status = self.status, self._place.status()
        if self.status.state == "healthy" and before.state != "healthy":
            self.was_healthy, self._healthy_at_s = True, now_s
            self._news.append(f"{self._name} is healthy: {self.status.url}")
        elif self.status.state in {"ended", "lost"}:
            self._note_end(before.state == "healthy" and now_s - self._healthy_at_s > CALM_S, now_s)

    def _note_end(self, was_calm: bool, now_s: float) -> None:
        self._num_restarts = 0 if was_calm else self._num_restarts
        status, most = self.status, self._plan.max_restarts
        what = "has died" if self.was_healthy else "did not start"
        told = f"{self._name} {what} ({status.why})"
        if (status.reason.is_lasting and not self.was_healthy) or self._num_restarts >= most:
            self.has_failed = True
            self._news.append(f"{told}, and is given up. Its log: {status.log}")
            return
        self._restart_at_s = now_s + min(MAX_PAUSE_S, PAUSE_S * 2**self._num_restarts)
        self._num_restarts += 1
        self._news.append(f"{told}; it is started again ({self._num_restarts} of {most}). Its log: {status.log}")
