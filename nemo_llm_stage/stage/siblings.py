"""
Whether the prompts of one row begin alike, so that one server should get them.

Pure. Knows prompts and rows; knows nothing of servers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.rows.column import Row
from nemo_llm_stage.rows.prefix import BLOCK_BYTES, common_prefix
from nemo_llm_stage.stage.order import RowPlan, sent_for

MIN_SHARED_BYTES = 4 * BLOCK_BYTES
"""Shortest beginning that counts: computing it twice costs more than a server that has a little more to do."""

MAX_BYTES = 1 << 16
"""Of each prompt, that are compared."""

NUM_ROWS = 8
"""Rows that are looked at."""


def begin_alike(prompts: Sequence[Prompt], answers: Iterable[str], rows: Sequence[Row]) -> bool:
    """
    Whether two prompts of one row share more of their beginning than those of different rows do.

    Args:
        prompts: Of the columns. One that calls a user's function or reads files is left out.
        answers: Names of the columns' answers, which prompts may mention and which are not known yet.
        rows: A few of them are looked at. Fewer than two tell nothing.
    """
    sample = rows[:: max(1, len(rows) // NUM_ROWS)][:NUM_ROWS]
    unknown = dict.fromkeys(answers, "")
    columns = [[sent_for(prompt, row, unknown)[:MAX_BYTES] for row in sample] for prompt in prompts if prompt.is_pure]
    if len(sample) < 2 or len(columns) < 2:
        return False
    everywhere = max(map(common_prefix, columns))
    num_alike = sum(
        any(common_prefix(pair) - everywhere >= MIN_SHARED_BYTES for pair in itertools.combinations(texts, 2))
        for texts in zip(*columns, strict=True)
    )
    return 2 * num_alike >= len(sample)


class Siblings:
    """
    Keeps the requests of one row at one server where their prompts begin alike. Safe to use from several threads.

    Args:
        prompts: Of the columns that ask the same servers.
        answers: Names of all columns' answers.
    """

    def __init__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> None:
        self._prompts = prompts
        self._answers = answers
        self._begin_alike = None if len(prompts) > 1 else False
        self._numbers = itertools.count()

    def keep_together(self, rows: Sequence[Row], plan: RowPlan | None) -> RowPlan | None:
        """Return `plan` with a group for each row of its own that has none, if the prompts of a row begin alike."""
        if self._begin_alike is None and len(rows) > 1:
            self._begin_alike = begin_alike(self._prompts, self._answers, rows)
        if not self._begin_alike:
            return plan
        indices, groups = (range(len(rows)), [None] * len(rows)) if plan is None else plan
        return RowPlan(indices, [next(self._numbers) if group is None else group for group in groups])

    def __reduce__(self) -> tuple[type[Siblings], tuple[Sequence[Prompt], Sequence[str]]]:
        """A copy begins anew."""
        return Siblings, (self._prompts, self._answers)
