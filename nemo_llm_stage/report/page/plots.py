"""
Plots as SVG: a histogram, and bars for labels.

Pure. Colours come from the page's style sheet, so that they fit light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, NUM_BINS = 420, 150, 24
_LEFT, _BOTTOM, _TOP = 6, 22, 8


def histogram(numbers: Sequence[float], unit: str) -> str:
    """
    Return a histogram of `numbers` in 24 bins from the smallest to the 99.5th percentile; larger ones share the last.

    Args:
        numbers: At least one, finite.
        unit: Written behind the axis's numbers; may be empty.
    """
    unit = f" {unit}" if unit else ""
    ordered = sorted(numbers)
    low, high = ordered[0], ordered[min(len(ordered) - 1, math.ceil(0.995 * len(ordered)) - 1)]
    span = (high - low) or 1.0
    counts = [0] * NUM_BINS
    for number in ordered:
        counts[min(NUM_BINS - 1, int((number - low) / span * NUM_BINS))] += 1
    step, top = (WIDTH - 2 * _LEFT) / NUM_BINS, max(counts)
    bars = []
    for place, count in enumerate(counts):
        height = (HEIGHT - _BOTTOM - _TOP) * count / top
        x, y = _LEFT + place * step, HEIGHT - _BOTTOM - height
        span_of_bin = f"{_short(low + place * span / NUM_BINS)} to {_short(low + (place + 1) * span / NUM_BINS)}{unit}"
        title = f"<title>{span_of_bin}: {count:,}</title>"
        bars.append(
            f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{step - 1.5:.1f}" height="{height:.1f}">{title}</rect>'
        )
    middle = (
        f'<text x="{_LEFT}" y="{HEIGHT - 6}">{_short(low)}{unit}</text>'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">median {_short(_quantile(ordered, 0.5))}{unit}, '
        f"99 % {_short(_quantile(ordered, 0.99))}{unit}</text>"
        f'<text x="{WIDTH - _LEFT}" y="{HEIGHT - 6}" text-anchor="end">{_short(high)}{unit}</text>'
    )
    return _svg(HEIGHT, "".join(bars) + middle)


def label_bars(counts: Sequence[tuple[str, int]]) -> str:
    """Return a horizontal bar for each label with its count and its share."""
    total, most, row = sum(count for _, count in counts), max(count for _, count in counts), 24
    lines = []
    for place, (label, count) in enumerate(counts):
        y = place * row
        shown = escape(label if len(label) <= 28 else f"{label[:27]}…")
        lines.append(
            f'<text x="0" y="{y + 16}">{shown}</text>'
            f'<rect class="bar" x="170" y="{y + 4}" width="{150 * count / most:.1f}" height="16"/>'
            f'<text x="{176 + 150 * count / most:.1f}" y="{y + 16}">{count:,} ({count / total:.0%})</text>'
        )
    return _svg(row * len(counts) + 4, "".join(lines))


def _svg(height: int, content: str) -> str:
    box = f'viewBox="0 0 {WIDTH} {height}"'
    return f'<svg class="plot" {box} role="img" xmlns="http://www.w3.org/2000/svg">{content}</svg>'


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.3g}"
