"""What is told of a job's servers."""

from __future__ import annotations

from typing import Any

from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.worker.control.server_news import ServerNews


def status(name: str, state: Any = "healthy", reason: str | None = None) -> EndpointStatus:
    return EndpointStatus(f"http://{name}/v1", state, reason=reason)


def test_changes_are_told_once() -> None:
    """The start is no news, nor is the first answer."""
    news = ServerNews()
    assert news.of([status("a", "starting"), status("b")]) == []
    assert news.of([status("a"), status("b")]) == []
    rests = [status("a", "resting", "timeout: no answer"), status("b"), status("c", "starting")]
    assert news.of(rests) == ["http://a/v1 is resting: timeout: no answer", "http://c/v1 has joined"]
    assert news.of(rests) == []
    assert news.of([status("a"), status("b", "gone"), status("c")]) == ["http://a/v1 is back", "http://b/v1 has left"]
    assert news.of([status("b", "starting")]) == ["http://b/v1 has joined"]


def test_servers_of_workers_that_start_later_have_not_joined() -> None:
    """They were there from the beginning."""
    news = ServerNews()
    assert news.of([status("a")], is_start=True) == news.of([status("a"), status("b")], is_start=True) == []
    assert news.of([status("a"), status("b"), status("c")]) == ["http://c/v1 has joined"]
