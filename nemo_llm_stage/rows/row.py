"""
A row becomes an outcome: each of its columns is asked as soon as the columns that its prompt uses are there.

Columns that do not use each other are asked side by side; one that fails fails only those that use it. Knows askers and
results; knows nothing of prompts, tables or files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_llm_stage.core import Outcome, RowResult
from nemo_llm_stage.errors import DependencyError, SkippedError
from nemo_llm_stage.rows.ask import Asker, Row
from nemo_llm_stage.rows.query import CompletionStore

Known = Mapping[str, RowResult]
"""Output column → its result, for columns of a row that are not to be asked."""


@dataclass(frozen=True, slots=True)
class AskedColumn:
    """
    One output column.

    Attributes:
        name: Of the column.
        asker: Asks for it.
        uses: Output columns that must be there first.
        values: What other columns' prompts see of its result.
    """

    name: str
    asker: Asker
    uses: tuple[str, ...]
    values: Callable[[RowResult], dict[str, Any]]


class RowAsker:
    """
    Asks one row after another.

    Args:
        columns: All that a row has; none uses itself by way of others.
    """

    def __init__(self, columns: Sequence[AskedColumn]) -> None:
        self._columns = columns
        self._by_name = {column.name: column for column in columns}

    async def ask(self, row: Row, store: CompletionStore | None = None, known: Known | None = None) -> Outcome:
        """
        Return what `row` comes to.

        Args:
            row: Column name → value.
            store: Looked up before asking, told after.
            known: Columns that are not asked, and their results; those are part of the outcome.

        Raises:
            FatalError: No row can succeed here.
            RunError: The run is broken.
        """
        if len(self._columns) == 1 and not known:
            column = self._columns[0]
            return {column.name: await column.asker.ask(row, store)}
        known = known or {}
        tasks: dict[str, asyncio.Task[RowResult]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for column in self._columns:
                    if column.name not in known:
                        tasks[column.name] = group.create_task(self._ask(column, row, store, known, tasks))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {name: known[name] if name in known else tasks[name].result() for name in self._by_name}

    async def _ask(
        self,
        column: AskedColumn,
        row: Row,
        store: CompletionStore | None,
        known: Known,
        tasks: Mapping[str, asyncio.Task[RowResult]],
    ) -> RowResult:
        values: dict[str, Any] = {}
        for name in column.uses:
            result = known[name] if name in known else await tasks[name]
            if result.error is not None:
                return _without(name, result)
            values |= self._by_name[name].values(result)
        return await column.asker.ask({**row, **values}, store)


def _without(name: str, result: RowResult) -> RowResult:
    """Return the result of a column that uses `name`, which has none."""
    is_skipped = result.error_kind == SkippedError.kind
    kind, what = (SkippedError.kind, "was skipped") if is_skipped else (DependencyError.kind, "failed")
    return RowResult(None, f"{kind}: column {name!r} {what}")
