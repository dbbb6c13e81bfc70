"""A few rows with their answers as a table. Knows rows; knows nothing of how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from nemo_llm_stage.report.console import shown

_MAX_SHOWN_CHARS = 300


def sample(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], output_columns: Sequence[str]) -> Table:
    """
    Return a few rows for a look, one below the other: what the prompts used, shortened, and whole answers or errors.

    Args:
        rows: Column name → value.
        columns: Shown, shortened to a line, before the answers.
        output_columns: The generated ones.
    """
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for row in rows:
        for column in columns:
            value = shown(_one_line(row.get(column)), "dim")
            value.no_wrap, value.overflow = True, "ellipsis"
            table.add_row(shown(column), value)
        for name in output_columns:
            table.add_row(shown(name, "bold"), _cell(row, name))
        table.add_row()
    return table


def _cell(row: Mapping[str, Any], output_column: str) -> Text:
    error, skipped = row.get(f"{output_column}_error"), row.get(f"{output_column}_skipped")
    if error:
        return shown(error, "red")
    return shown(f"skipped: {skipped}", "yellow") if skipped else shown(_one_line(_answer(row, output_column)))


def _answer(row: Mapping[str, Any], output_column: str) -> Any:
    """The column's value, or where its fields are columns of their own, these."""
    if output_column in row:
        return row[output_column]
    beside = {f"{output_column}_{name}" for name in ("error", "skipped", "meta", "reasoning", "choice")}
    fields = {name: value for name, value in row.items() if name.startswith(f"{output_column}_") and name not in beside}
    return {name.removeprefix(f"{output_column}_"): value for name, value in fields.items()}


def _one_line(value: Any) -> str:
    text = " ".join(str("" if value is None else value).split())
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"
