"""
A row becomes an outcome: each column is generated as soon as the columns that its prompt uses are there.

Independent columns run side by side; if one column fails, only columns that depend on it fail. Knows columns and
results; knows nothing of tables or files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_llm_stage.core import Outcome, RowResult
from nemo_llm_stage.errors import DependencyError, SkippedError
from nemo_llm_stage.rows.column import Row
from nemo_llm_stage.rows.generate import ColumnRunner
from nemo_llm_stage.rows.query import CompletionStore

Known = Mapping[str, RowResult]
"""Output column → its result, for the columns of a row that are not generated again."""

_Open = tuple[Mapping[str, asyncio.Task[RowResult]], Known]
_NOT_OPEN: _Open = ({}, {})


class RowRunner:
    """
    Runs one row through all columns.

    Args:
        runners: One for each column, in the order of the columns.
        uses: Output column → the output columns that its prompt uses; acyclic.
    """

    def __init__(self, runners: Sequence[ColumnRunner], uses: Mapping[str, Sequence[str]]) -> None:
        self._runners = {runner.column.name: runner for runner in runners}
        self._uses = uses
        self._open: dict[asyncio.Task[Any], _Open] = {}

    def rows_by_task(self) -> dict[asyncio.Task[Any], asyncio.Task[Any]]:
        """Return the tasks that run columns, each with the one that runs its row; none for rows of one column."""
        return {task: row for row, (tasks, _) in self._open.items() for task in tasks.values()}

    def finished(self, row: asyncio.Task[Any]) -> Known:
        """Return the results of columns that the row that this task runs has so far."""
        tasks, known = self._open.get(row, _NOT_OPEN)
        done = {name: task for name, task in tasks.items() if task.done() and not task.cancelled()}
        return {**known, **{name: task.result() for name, task in done.items() if task.exception() is None}}

    async def run_row(self, row: Row, store: CompletionStore | None = None, known: Known | None = None) -> Outcome:
        """
        Return the row's outcome.

        Args:
            row: Column name → value.
            store: Looked up before a request is sent, told after.
            known: Results of columns that are not generated again; they become part of the outcome.

        Raises:
            FatalError: No row can succeed here.
            RunError: The run is broken.
        """
        if len(self._runners) == 1 and not known:
            [(name, runner)] = self._runners.items()
            return {name: await runner.generate(row, store)}
        known = known or {}
        tasks: dict[str, asyncio.Task[RowResult]] = {}
        row_task = asyncio.current_task()
        assert row_task is not None
        self._open[row_task] = tasks, known
        try:
            async with asyncio.TaskGroup() as group:
                for name in self._runners:
                    if name not in known:
                        tasks[name] = group.create_task(self._run_column(name, row, store, known, tasks))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            del self._open[row_task]
        return {name: known[name] if name in known else tasks[name].result() for name in self._runners}

    async def _run_column(
        self,
        name: str,
        row: Row,
        store: CompletionStore | None,
        known: Known,
        tasks: Mapping[str, asyncio.Task[RowResult]],
    ) -> RowResult:
        values: dict[str, Any] = {}
        for used in self._uses[name]:
            result = known[used] if used in known else await tasks[used]
            if result.error is not None:
                return _unmet(used, result)
            values |= self._runners[used].column.values(result)
        return await self._runners[name].generate(row, store, values)


def _unmet(name: str, result: RowResult) -> RowResult:
    """Return the result of a column that uses `name`, which has no value."""
    is_skipped = result.error_kind == SkippedError.kind
    kind, what = (SkippedError.kind, "was skipped") if is_skipped else (DependencyError.kind, "failed")
    return RowResult(None, f"{kind}: column {name!r} {what}")
