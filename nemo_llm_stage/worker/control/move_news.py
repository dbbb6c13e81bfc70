"""
What is worth telling of rows that go from one worker to others.

Pure. Knows counts; knows nothing of who reads about it.
"""

from __future__ import annotations

from nemo_llm_stage.worker.moves import Moves

MIN_PAUSE_S = 10.0
"""Seconds between two reports of a kind; they tell all so far."""

MAX_URLS = 3


class MoveNews:
    """Compares what moved with what was told of it before."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, float]] = {}

    def of(self, moves: Moves, now_s: float) -> list[str]:
        """
        Return a sentence for each kind of move that there was more of.

        Args:
            moves: Of the run so far.
            now_s: Seconds that never go back; infinity at the end of the run.
        """
        given_back = "rows so far went from workers that had too many to ones with nothing to do"
        sent_again = f"rows so far were sent a second time, as they were in flight for long at {_list(moves.slow_urls)}"
        texts = []
        if self._is_news("given back", moves.num_given_back, now_s):
            texts.append(f"{moves.num_given_back:,} {given_back}")
        if self._is_news("sent again", moves.num_second_sends, now_s):
            texts.append(f"{moves.num_second_sends:,} {sent_again}")
        return texts

    def _is_news(self, kind: str, num: int, now_s: float) -> bool:
        told, at_s = self._told.get(kind, (0, float("-inf")))
        if num <= told or now_s - at_s < MIN_PAUSE_S:
            return False
        self._told[kind] = num, now_s
        return True


def _list(urls: tuple[str, ...]) -> str:
    more = len(urls) - MAX_URLS
    return ", ".join(urls[:MAX_URLS]) + (f" and {more} more" if more > 0 else "")
