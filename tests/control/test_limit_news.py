"""The history of limits that move by themselves: one line for each large move."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.worker.control.limit_news import LimitNews

STATUS = EndpointStatus("http://a/v1", limit=64, mode="metrics", moved="it has room")


def test_large_moves_are_told() -> None:
    """The first status is where it began; small moves and those that come too soon are not told."""
    news = LimitNews()
    assert news.of([STATUS], 100) == []
    [text] = news.of([replace(STATUS, limit=128)], 101)
    assert text == "http://a/v1: 128 requests in flight at most, after 64 (metrics): it has room"
    assert news.of([replace(STATUS, limit=256)], 102) == []
    assert len(news.of([replace(STATUS, limit=256)], 112)) == 1
    assert news.of([replace(STATUS, limit=260)], 130) == []


def test_another_mode_is_told() -> None:
    """Also where the limit is the same."""
    news = LimitNews()
    news.of([STATUS], 0)
    [text] = news.of([replace(STATUS, mode="fixed", moved=None)], 20)
    assert "(fixed): a number was set" in text


@pytest.mark.parametrize("status", [replace(STATUS, mode="fixed"), replace(STATUS, limit=None)])
def test_a_limit_that_does_not_move_is_not_told(status: EndpointStatus) -> None:
    """A number, or a server that is not asked."""
    news = LimitNews()
    assert news.of([status], 0) == news.of([replace(status, limit=None)], 50) == []


def test_many_servers_are_not_told_one_by_one() -> None:
    """They would push everything else out of the events."""
    news = LimitNews()
    for limit in (64, 640):
        assert news.of([replace(STATUS, url=f"http://{n}/v1", limit=limit) for n in range(9)], limit) == []
