"""
Plots of a run over time as SVG: rows a second, and requests in flight under their limit, with the events as marks.

Pure. Knows the timeline of one run; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from html import escape

from nemo_llm_stage.dataset.state.timeline import COLUMNS, Event, Timeline

WIDTH, HEIGHT = 860, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 6, 6, 12, 22

MIN_POINTS = 3
"""Fewer say nothing."""

MIN_WINDOW_S, WINDOWS_OF_A_RUN = 8.0, 60
"""The speed at a moment is that of the last 8 s, or of a sixtieth of the run where that is longer."""

SHOWN_EVENTS = 60
"""Marks of a plot, the newest ones."""


def speed_plot(timeline: Timeline) -> str:
    """Return rows a second over the time of a run, which has at least `MIN_POINTS` points."""
    return _plot(timeline, [(_speeds(timeline), "line")], "rows/s")


def load_plot(timeline: Timeline) -> str:
    """Return the requests in flight, and their limit, over the time of a run with at least `MIN_POINTS` points."""
    limit, load = _column(timeline, "max_concurrent_requests"), _column(timeline, "num_in_flight")
    return _plot(timeline, [(limit, "limit"), (load, "line")], "in flight")


def _speeds(timeline: Timeline) -> list[float]:
    """Return at each point the rows a second over the last seconds: few enough that an outage is seen."""
    seconds, rows = _column(timeline, "seconds"), _column(timeline, "num_rows")
    window_s = max(MIN_WINDOW_S, seconds[-1] / WINDOWS_OF_A_RUN)
    speeds, start = [], 0
    for place, second in enumerate(seconds):
        while start + 1 < place and second - seconds[start + 1] >= window_s:
            start += 1
        speeds.append(max(0.0, rows[place] - rows[start]) / max(window_s, second - seconds[start]))
    return speeds


def _top(numbers: Sequence[float]) -> float:
    """Return the upper end of an axis: a short peak, e.g. of journaled rows, is cut off."""
    ordered = sorted(numbers)
    return min(ordered[-1], 1.25 * ordered[int(0.97 * (len(ordered) - 1))]) or ordered[-1] or 1.0


def _plot(timeline: Timeline, lines: Sequence[tuple[Sequence[float], str]], unit: str) -> str:
    seconds = _column(timeline, "seconds")
    span_s = max(seconds[-1], 1e-9)
    most = max(_top(numbers) for numbers, _ in lines)

    def x(second: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * min(1.0, max(0.0, second / span_s))

    def y(number: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * min(1.0, number / most)

    paths = []
    for numbers, style in lines:
        points = " ".join(f"{x(second):.1f},{y(number):.1f}" for second, number in zip(seconds, numbers, strict=True))
        paths.append(f'<polyline class="{style}" points="{points}"/>')
    marks = "".join(_mark(event, timeline.started_at, x) for event in timeline.events[-SHOWN_EVENTS:])
    text = (
        f'<text x="{_LEFT}" y="{_TOP - 2}">{most:,.3g} {unit}</text>'
        f'<text x="{_LEFT}" y="{HEIGHT - 6}">0</text>'
        f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{_span(span_s)}</text>'
    )
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg class="plot" {box} role="img" xmlns="http://www.w3.org/2000/svg">{marks}{"".join(paths)}{text}</svg>'


def _mark(event: Event, started_at: str, x: Callable[[float], float]) -> str:
    try:
        second = (datetime.fromisoformat(event.at) - datetime.fromisoformat(started_at)).total_seconds()
    except (ValueError, TypeError):  # whoever may write the folder may write nonsense
        return ""
    at, title = x(second), escape(f"{event.at}  {event.kind}: {event.text}")
    return (
        f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}">'
        f"<title>{title}</title></line>"
    )


def _column(timeline: Timeline, name: str) -> list[float]:
    place = COLUMNS.index(name)
    return [point[place] for point in timeline.points]


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
