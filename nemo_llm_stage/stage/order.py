"""
In which order a stage sends rows: as given, or grouped by the beginning of their prompts.

Looks at whole windows of rows and turns itself off where no prefix is shared. Knows prompts; knows nothing of clients.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, overload

import orjson

from nemo_llm_stage.errors import RowError
from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.rows.column import Row
from nemo_llm_stage.rows.prefix import PrefixOrder, order_by_prefix
from nemo_llm_stage.stage.status import OrderStatistics

logger = logging.getLogger(__name__)

Order = Literal["auto", "input"]

MIN_ROWS = 16
"""A window of fewer rows is sent as given."""

MAX_WINDOWS_SKIPPED = 63
"""After a window that shares nothing 1 is skipped, then 3, 7 …, at most 63: looking costs about 15 µs of CPU a row."""


class RowPlan(NamedTuple):
    """
    How to send a window of rows.

    Attributes:
        indices: Of the rows, in the order to send them.
        groups: For each row, in the order as given, its group: rows of one go to one server if they can.
    """

    indices: Sequence[int]
    groups: Sequence[int | None]


def sent_for(prompt: Prompt, row: Row, more: Row | None = None) -> bytes:
    """Return what is sent for a row with `more` columns; nothing where that fails, which is told at the row's turn."""
    try:
        return orjson.dumps(prompt.render({**row, **more} if more else row))
    except (RowError, TypeError):
        return b""


class _Sent(Sequence[bytes]):
    """What is sent for rows, made as it is taken: the prompts of a window would take more memory than its rows."""

    def __init__(self, prompt: Prompt, rows: Sequence[Row]) -> None:
        self._prompt = prompt
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> list[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | list[bytes]:
        if isinstance(place, slice):
            return [sent_for(self._prompt, row) for row in self._rows[place]]
        return sent_for(self._prompt, self._rows[place])

    def __iter__(self) -> Iterator[bytes]:
        return (sent_for(self._prompt, row) for row in self._rows)


class RowOrder:
    """
    Orders windows of rows by the prefixes of one prompt. Safe to use from several threads.

    Args:
        prompt: The first one that a row sends. One that calls a user's function or reads files is not rendered twice:
            its rows are sent as given.

    Attributes:
        gains: Whether the last window that was looked at was sent in another order.
    """

    def __init__(self, prompt: Prompt) -> None:
        self.gains = False
        self._prompt = prompt
        self._lock = threading.Lock()
        self._num_to_skip = 0
        self._next_skip = 1
        self._seen = OrderStatistics()

    def of(self, rows: Sequence[Row]) -> RowPlan | None:
        """Return how to send `rows`; None for the order as given and any servers."""
        if len(rows) < MIN_ROWS or not self._prompt.is_pure or self._skips():
            return None
        order = order_by_prefix(_Sent(self._prompt, rows))
        self._learn(order)
        if not order.is_useful and not order.has_groups:
            return None
        return RowPlan(order.indices if order.is_useful else range(len(rows)), order.groups)

    def statistics(self) -> OrderStatistics:
        """Return what has been seen so far."""
        return self._seen

    def __reduce__(self) -> tuple[type[RowOrder], tuple[Prompt]]:
        """A copy begins anew."""
        return RowOrder, (self._prompt,)

    def _skips(self) -> bool:
        with self._lock:
            if not self._num_to_skip:
                return False
            self._num_to_skip -= 1
            return True

    def _learn(self, order: PrefixOrder) -> None:
        is_useful = order.is_useful
        with self._lock:
            before, self.gains = self._seen, is_useful
            sent = order.shared if is_useful else order.shared_as_given
            self._seen = before + OrderStatistics(1, int(is_useful), sent, order.shared_as_given)
            if is_useful or order.has_groups:
                self._num_to_skip, self._next_skip = 0, 1
            else:
                self._num_to_skip, self._next_skip = self._next_skip, min(2 * self._next_skip + 1, MAX_WINDOWS_SKIPPED)
        if not before.num_windows or (is_useful and not before.num_ordered):
            logger.info("rows are sent %s", self._seen.words)
