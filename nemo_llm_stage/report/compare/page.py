"""
Shows a comparison: a page without scripts, and a table on the terminal. All row text is escaped.

Knows a comparison; how it is computed is `figures`'.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from rich import box
from rich.console import Group
from rich.table import Table

from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.summary import TMP
from nemo_llm_stage.dataset.writing import writing_to
from nemo_llm_stage.report.compare.figures import Agreement, agreement_of, differences, totals
from nemo_llm_stage.report.compare.sides import Pair, Sides
from nemo_llm_stage.report.console import shown
from nemo_llm_stage.report.units import percent

MAX_CHARS = 1500
_FOLDER = Path(__file__).parent
_STYLE = _FOLDER.parent / "page" / "page.css"


def comparison_page(sides: Sides) -> str:
    """Return the page about two jobs."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=select_autoescape(default=True), undefined=StrictUndefined
    )
    environment.filters["number"] = number
    environment.filters["cut"] = _cut
    style = _STYLE.read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    agreements = agreements_of(sides)
    return environment.get_template("compare.html.j2").render(
        sides=sides,
        names=names_of(sides),
        totals=_beside(totals(sides.left), totals(sides.right)),
        settings=differences(sides.left, sides.right),
        agreements=agreements,
        rows={one.column: [_row(pair, one) for pair in one.different] for one in agreements},
        percent=percent,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup(style),  # noqa: S704 - ours
        policy=f"default-src 'none'; style-src 'sha256-{digest}'",
    )


def write_comparison(sides: Sides) -> str:
    """
    Write the page into the state folder of the second job, and return where it lies.

    Raises:
        RunError: The folder cannot be written.
    """
    state = OutputFolder(sides.right.url).state
    name = f"compare-{names_of(sides)[0].replace('/', '_')}.html"
    with writing_to(sides.right.url):
        state.replace_bytes(comparison_page(sides).encode("utf-8", "replace"), name, scratch_sub=TMP)
    return state.path(name)


def comparison_table(sides: Sides) -> Group:
    """Return what a terminal shows: the counts side by side, and how the answers of each column agree."""
    names = names_of(sides)
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("", style="bold")
    for name in names:
        table.add_column(shown(name), justify="right")
    for words, left, right in _beside(totals(sides.left), totals(sides.right)):
        table.add_row(words, number(left), number(right))
    for one in agreements_of(sides):
        table.add_section()
        table.add_row(shown(one.column), *(["" if one.column == one.other else shown(one.other), ""]))
        table.add_row("  same answer", percent(one.num_same, one.num_both), f"of {one.num_both:,} rows")
        if one.kappa is not None:
            table.add_row("  Cohen's kappa", f"{one.kappa:.2f}", "")
        if one.only_left or one.only_right:
            table.add_row("  answered here alone", f"{one.only_left:,}", f"{one.only_right:,}")
        for words, (left_mean, right_mean) in one.means.items():
            table.add_row(f"  mean {words}", number(left_mean), number(right_mean))
    return Group(table)


def agreements_of(sides: Sides) -> list[Agreement]:
    """Return how each column's answers agree."""
    return [agreement_of(sides, column, other) for column, other in sides.columns]


def names_of(sides: Sides) -> tuple[str, str]:
    """Return the ends of the two folders' paths that tell them apart."""
    left, right = (side.url.rpartition("/")[2] for side in (sides.left, sides.right))
    return (left, right) if left != right else (sides.left.url, sides.right.url)


def number(value: float | None) -> str:
    """Return a number for people; a dash where there is none."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"


def _beside(
    left: Mapping[str, float | None], right: Mapping[str, float | None]
) -> list[tuple[str, float | None, float | None]]:
    return [(name, left[name], right[name]) for name in left if left[name] or right[name]]


def _row(pair: Pair, agreement: Agreement) -> dict[str, Any]:
    return {
        "input": [(name, _cut(_text(value))) for name, value in pair.values.items()],
        "answers": [_answer(pair.left, agreement.column), _answer(pair.right, agreement.other)],
    }


def _answer(row: Mapping[str, Any], column: str) -> tuple[str, bool]:
    """Return the answer, or why there is none, and whether it is that."""
    value = row.get(column)
    if value is not None:
        return _cut(_text(value)), False
    reasons: Sequence[Any] = (row.get(f"{column}_error"), row.get(f"{column}_skipped"))
    return _cut(_text(next(filter(None, reasons), "no answer"))), True


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return f"({len(value):,} bytes)"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}… ({len(text):,} characters)"
