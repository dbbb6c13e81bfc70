"""
All servers that one job or one `serve` starts: their addresses as they come and go, what happens to them, their end.

One thread looks at them. Knows places; knows nothing of Ray or of clients.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemo_llm_stage.errors import RunError
from nemo_llm_stage.servers.plan import ServerPlan
from nemo_llm_stage.servers.server import Place, Server

LOOK_S = 0.2
FOLLOW_S = 30.0
"""Once the first server is healthy, the others have so long to be healthy too before it gets requests alone."""


@dataclass(frozen=True, slots=True)
class FleetView:
    """
    How servers stand while they start.

    Attributes:
        num_healthy: Servers that answer.
        num_servers: Servers that are wanted.
        words: What they wait for.
        tail: The last lines of the log of one that starts.
    """

    num_healthy: int
    num_servers: int
    words: str
    tail: tuple[str, ...] = ()


class Fleet:
    """
    Equal servers.

    Args:
        plan: What each of them is.
        places: One for each.
    """

    def __init__(self, plan: ServerPlan, places: Sequence[Place]) -> None:
        self._plan, self._places = plan, places
        self._news: list[str] = []
        self._servers: list[Server] = []
        self._is_over = threading.Event()
        self._looked = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, name="servers", daemon=True)

    @property
    def urls(self) -> tuple[str, ...]:
        """The base URLs of the servers that are healthy now."""
        return tuple(server.status.url for server in self._servers if server.is_healthy)

    @property
    def num_servers(self) -> int:
        """Servers that are wanted."""
        return len(self._places)

    def start(self) -> None:
        """Begin to start the servers; return at once."""
        self._thread.start()

    def wait(self, show: Callable[[FleetView], None], tell: Callable[[str], None]) -> None:
        """
        Return when the servers are healthy, or one is and the others are late.

        Args:
            show: Told again and again how they stand.
            tell: Told what happens to them.

        Raises:
            RunError: None can be started.
        """
        first_s: float | None = None
        while True:
            self.check(tell)
            urls, now_s = self.urls, time.monotonic()
            num_wanted = sum(not server.has_failed for server in self._servers) or self.num_servers
            if urls and first_s is None:
                first_s = now_s
            show(self.view())
            if len(urls) >= num_wanted or (first_s is not None and now_s - first_s > FOLLOW_S):
                return
            with self._looked:
                self._looked.wait(2 * LOOK_S)

    def view(self) -> FleetView:
        """Return how the servers stand."""
        rest = [server for server in self._servers if not server.is_healthy and not server.has_failed]
        starting = [server for server in rest if server.status.state == "starting"]
        wait_for_room = bool(rest) and all(server.status.state == "waiting" for server in rest)
        words = "room in the cluster" if wait_for_room else "the servers to be healthy"
        tail = starting[0].status.tail if starting else ()
        return FleetView(len(self.urls), self.num_servers, words, tail)

    def check(self, tell: Callable[[str], None]) -> None:
        """
        Tell what has happened to servers since the last call.

        Raises:
            RunError: All servers are given up.
        """
        while self._news:
            tell(self._news.pop(0))
        if self._error is not None:
            raise self._error
        if self._servers and all(server.has_failed for server in self._servers):
            last = max(self._servers, key=lambda server: server.was_healthy)
            raise RunError(f"no server is left. {last.why_failed}")

    def close(self) -> None:
        """End all servers; return when they have ended. Safe to call twice."""
        self._is_over.set()
        if self._thread.ident is not None:
            self._thread.join()
        for place in self._places:
            place.begin_stop()
        for place in self._places:
            place.close()

    def _watch(self) -> None:
        try:
            for number, place in enumerate(self._places, 1):
                server = Server(number, self._plan, place, self._news, time.monotonic())
                server.look(time.monotonic())
                self._servers.append(server)
            while not self._is_over.wait(LOOK_S):
                for server in self._servers:
                    server.look(time.monotonic())
                with self._looked:
                    self._looked.notify_all()
        except Exception as error:  # noqa: BLE001 - raised again where somebody waits
            self._error = error
