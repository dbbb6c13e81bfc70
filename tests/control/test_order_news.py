"""What is told of the order in which rows are sent."""

from __future__ import annotations

from nemo_llm_stage.stage.status import OrderStatistics
from nemo_llm_stage.worker.control.order_news import OrderNews


def test_the_order_is_told_once_it_is_known_and_when_it_changes() -> None:
    """Not with each look at more rows."""
    news = OrderNews()
    assert news.of(OrderStatistics()) == []
    assert news.of(OrderStatistics(1)) == [
        "rows are sent as in the input: another order would share no more of the prompts"
    ]
    assert news.of(OrderStatistics(2)) == []
    [text] = news.of(OrderStatistics(3, 1, 0.3, 0.1))
    assert text.startswith("rows are sent grouped by the beginning of their prompts in 33% of the looks at them: at")
    assert news.of(OrderStatistics(4, 2, 0.4, 0.1)) == []
