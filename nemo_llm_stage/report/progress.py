"""
Progress on stderr: rows, rate, time left, failures; a bar on a terminal, a line now and then in a log.

Knows counts; knows nothing of how they come about.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from nemo_llm_stage.core import Counters
from nemo_llm_stage.report.console import PlainConsole, shown
from nemo_llm_stage.text import one_line

LOG_INTERVAL_S = 10.0
RATE_WINDOW_S = 30.0
MAX_TROUBLE_CHARS = 120


class Progress:
    """
    Shows how a job stands, from `update` to `update`.

    Args:
        num_rows: Of the whole job.
        is_exact: Whether `num_rows` was counted; else it is shown with a ``~``.
        num_rows_before: Finished before this run; not part of the rate.
        is_shown: False shows nothing.
        console: Where to; stderr if not given.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        is_exact: bool = True,
        num_rows_before: int = 0,
        is_shown: bool = True,
        console: Console | None = None,
    ) -> None:
        self._num_rows = num_rows
        self._about = "" if is_exact else "~"
        self._is_shown = is_shown
        self._console = console or PlainConsole(file=sys.stderr)
        now = time.monotonic()
        self._window: deque[tuple[float, int]] = deque([(now, num_rows_before)])
        self._next_line_at = now + LOG_INTERVAL_S
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        """Begin to show."""
        if self._is_shown and self._console.is_terminal:
            self._bar = RichProgress(
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=self._num_rows)
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the last state standing."""
        if self._bar is not None:
            self._bar.stop()

    def update(self, counters: Counters, num_in_flight: int, trouble: str | None = None) -> None:
        """Show `counters`, the job's so far, the requests in flight, and why rows are being put off, if they are."""
        now = time.monotonic()
        if counters.num_rows == self._window[0][1]:
            self._window.clear()  # the rate is counted from the first answer, not from the start of the engine
        self._window.append((now, counters.num_rows))
        while len(self._window) > 2 and now - self._window[0][0] > RATE_WINDOW_S:
            self._window.popleft()
        if self._bar is not None:
            text = self._describe(counters, num_in_flight, trouble)
            self._bar.update(self._task, completed=counters.num_rows, description=text)
        elif self._is_shown and now >= self._next_line_at:
            self._next_line_at = now + LOG_INTERVAL_S
            percent = 100 * counters.num_rows / max(1, self._num_rows)
            rows = f"{counters.num_rows:,} of {self._about}{self._num_rows:,} rows ({percent:.0f} %)"
            self._console.print(shown(f"{rows}, {self._describe(counters, num_in_flight, trouble)}"))

    def note(self, text: str) -> None:
        """Show a line that stays."""
        if self._is_shown:
            self._console.print(shown(text))

    def _describe(self, counters: Counters, num_in_flight: int, trouble: str | None) -> str:
        (start, before), (end, after) = self._window[0], self._window[-1]
        rate = (after - before) / (end - start) if end > start else 0.0
        parts = [f"{rate:,.1f} rows/s"]
        if rate > 0:
            parts.append(f"{duration(max(0, self._num_rows - counters.num_rows) / rate)} left")
        parts.append(f"{num_in_flight:,} in flight")
        if counters.num_failed:
            parts.append(f"{counters.num_failed:,} failed")
        if trouble:
            parts.append(f"rows wait for the server ({one_line(trouble, MAX_TROUBLE_CHARS)})")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a time span for people: ``8 s``, ``3 min 20 s``, ``5 h 10 min``, ``2 d 4 h``."""
    whole = round(seconds)
    for unit_s, unit, rest_s, rest in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit_s:
            return f"{whole // unit_s} {unit} {whole % unit_s // rest_s} {rest}"
    return f"{whole} s"
