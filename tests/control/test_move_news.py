"""Rows that go from one worker to others: the timeline tells how many so far."""

from __future__ import annotations

from math import inf

from nemo_llm_stage.worker.control.move_news import MoveNews
from nemo_llm_stage.worker.moves import NO_MOVES, Moves


def test_what_moved_is_told_once_in_a_while() -> None:
    """Only what there was more of."""
    news = MoveNews()
    assert news.of(NO_MOVES, 100.0) == []
    [text] = news.of(Moves(1200), 101.0)
    assert text.startswith("1,200 rows so far went from workers")
    more = Moves(1300, 2, ("http://a/v1",))
    [text] = news.of(more, 105.0)
    assert text.startswith("2 rows so far were sent a second time")
    assert len(news.of(more, 111.0)) == 1
    assert news.of(more, 130.0) == []
    assert len(news.of(Moves(1400, 3, ("http://a/v1",)), inf)) == 2


def test_many_slow_servers_are_counted() -> None:
    [text] = MoveNews().of(Moves(0, 5, tuple(f"http://{name}" for name in "abcde")), 0.0)
    assert text.endswith("at http://a, http://b, http://c and 2 more")
