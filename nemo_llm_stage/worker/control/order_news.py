"""
What is worth telling of the order in which rows are sent: which it is, once that is known, and when it changes. Pure.

Knows what was seen of prompts; knows nothing of who reads about it.
"""

from __future__ import annotations

from nemo_llm_stage.stage.status import OrderStatistics


class OrderNews:
    """Compares the order of rows with what was told of it before."""

    def __init__(self) -> None:
        self._told: bool | None = None

    def of(self, seen: OrderStatistics) -> list[str]:
        """Return a sentence where rows are sent in another kind of order than was told."""
        is_grouped = seen.num_ordered > 0
        if not seen.num_windows or is_grouped == self._told:
            return []
        self._told = is_grouped
        return [f"rows are sent {seen.words}"]
