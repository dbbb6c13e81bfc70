"""The servers of a view as a small table of fixed columns: more of them where there is room. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from nemo_llm_stage.report.progress.view import EndpointView, View
from nemo_llm_stage.report.progress.words import name_of, state_of
from nemo_llm_stage.report.units import latency, rate

MAX_SERVERS = 8
"""Servers that are shown one by one, those that are down first."""


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of numbers; `from_width` is how wide the screen must be for it."""

    heading: str
    width: int
    cell: Callable[[EndpointView], str]
    from_width: int = 0


_COLUMNS = (
    _Column("in flight", 9, lambda endpoint: f"{endpoint.status.in_flight:,}"),
    _Column("rows/s", 8, lambda endpoint: rate(endpoint.rows_per_s)),
    _Column("p50", 7, lambda endpoint: latency(endpoint.p50_s)),
    _Column("p95", 7, lambda endpoint: latency(endpoint.p95_s)),
    _Column("p99", 7, lambda endpoint: latency(endpoint.p99_s), from_width=100),
    _Column("answered", 12, lambda endpoint: f"{endpoint.status.num_answered:,}", from_width=100),
    _Column("failed sends", 13, lambda endpoint: f"{endpoint.status.num_failed:,}", from_width=110),
)


def server_lines(view: View, width: int) -> Iterator[Text]:
    """Yield a heading and a line for each server, each at most `width` cells wide."""
    if not view.endpoints:
        return
    columns = [column for column in _COLUMNS if width >= column.from_width]
    room = width - 1 - sum(column.width for column in columns)
    shown = sorted(view.endpoints, key=lambda endpoint: (not endpoint.status.is_down, endpoint.status.url))
    names = [name_of(endpoint.status.url) for endpoint in shown[:MAX_SERVERS]]
    name_width = min(max(map(cell_len, ["server", *names])) + 2, max(10, room - 14))
    heading = [set_cell_size("server", name_width), set_cell_size("state", max(0, room - name_width))]
    yield _line(heading, [column.heading for column in columns], columns, "dim")
    for name, endpoint in zip(names, shown, strict=False):
        state = state_of(endpoint, view.now)
        cells = [_cut(name, name_width), _cut(state, max(0, room - name_width))]
        style = "red" if endpoint.status.is_down else ""
        yield _line(cells, [column.cell(endpoint) for column in columns], columns, style)
    if len(shown) > MAX_SERVERS:
        rest = shown[MAX_SERVERS:]
        num_down = sum(endpoint.status.is_down for endpoint in rest)
        yield Text(f" and {len(rest):,} more servers" + (f", {num_down:,} of them down" if num_down else ", all ok"))


def _line(left: Sequence[str], cells: Sequence[str], columns: Sequence[_Column], style: str) -> Text:
    right = "".join(f"{cell:>{column.width}}" for cell, column in zip(cells, columns, strict=True))
    return Text(f" {''.join(left)}{right}", style=style)


def _cut(text: str, width: int) -> str:
    """Return `text` filled up or cut to `width` cells; one that is cut ends with an ellipsis and a space."""
    return set_cell_size(text, width) if cell_len(text) < width else set_cell_size(text, max(0, width - 2)) + "… "
