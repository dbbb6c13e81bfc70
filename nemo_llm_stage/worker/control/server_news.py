"""
What is worth telling of a job's servers: one rests, one is back, one has joined or left.

Pure. Knows how servers stand; knows nothing of who reads about it.
"""

from __future__ import annotations

from collections.abc import Iterable

from nemo_llm_stage.client.endpoint_status import EndpointState, EndpointStatus


class ServerNews:
    """Compares how servers stand with how they stood."""

    def __init__(self) -> None:
        self._states: dict[str, EndpointState] = {}

    def of(self, endpoints: Iterable[EndpointStatus], *, is_start: bool = False) -> list[str]:
        """
        Return a sentence for each change that a person may want to know of.

        Args:
            endpoints: The servers. The first list is the start.
            is_start: Whether workers are still missing, whose servers have not joined then.
        """
        is_start = is_start or not self._states
        news = []
        for endpoint in endpoints:
            before = self._states.get(endpoint.url)
            self._states[endpoint.url] = endpoint.state
            if endpoint.state != before and (text := _news(endpoint, before, is_start=is_start)):
                news.append(text)
        return news


def _news(endpoint: EndpointStatus, before: EndpointState | None, *, is_start: bool) -> str:
    if endpoint.is_down:
        return f"{endpoint.url} is {endpoint.state}: {endpoint.reason}"
    if endpoint.state == "gone":
        return f"{endpoint.url} has left"
    if before in {"suspect", "resting"}:
        return f"{endpoint.url} is back"
    has_joined = before == "gone" or (before is None and not is_start)
    return f"{endpoint.url} has joined" if has_joined else ""
