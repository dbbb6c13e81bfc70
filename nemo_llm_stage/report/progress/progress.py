"""
Shows the progress of a job, on a display that fits the place it runs in.

Knows counts and clocks; knows nothing of how the rows come about.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, Self

from rich.console import RenderableType

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.report.console import PlainConsole
from nemo_llm_stage.report.metrics.publisher import Publisher
from nemo_llm_stage.report.progress.displays import (
    Display,
    LogDisplay,
    NoDisplay,
    NotebookDisplay,
    ScreenDisplay,
    is_notebook,
    number_of_cell,
)
from nemo_llm_stage.report.progress.meter import Meter
from nemo_llm_stage.report.progress.view import JobTitle, View
from nemo_llm_stage.servers.fleet import FleetView
from nemo_llm_stage.worker.engine import RunStatus
from nemo_llm_stage.worker.task import PartitionReport

MIN_BYTES_SHOWN = 64 << 20
"""Of input that is looked at; less is done in a second."""


class Progress:
    """
    Shows how a job stands: on a terminal as a screen, in a notebook as one output, else as lines on stderr.

    Args:
        is_shown: False shows nothing.
        log_format: Of the lines, ``text`` or ``json``.
        console: Where to; stderr if not given.
        publisher: Given all that is shown; None for nobody.
        title: What is shown until a job begins; empty for the product's name.
    """

    def __init__(
        self,
        *,
        is_shown: bool = True,
        log_format: Literal["text", "json"] = "text",
        console: PlainConsole | None = None,
        publisher: Publisher | None = None,
        title: str = "",
    ) -> None:
        self._is_shown = is_shown
        self._log_format = log_format
        self._console = console or PlainConsole(file=sys.stderr)
        self._display: Display = NoDisplay()
        self._started_s = self._viewed_s = time.monotonic()
        self._view = View(JobTitle((title,) if title else ()), waits_for="the input and the server to be checked")
        self._meter: Meter | None = None
        self._last: RenderableType | None = None
        self._publisher = publisher

    def __enter__(self) -> Self:
        """
        Begin to show and to publish.

        Raises:
            ConfigError: The port for metrics cannot be opened.
        """
        if self._publisher is not None:
            self._publisher.__enter__()
        if self._is_shown and is_notebook():
            self._display = NotebookDisplay()
        elif self._is_shown and self._console.is_terminal:
            self._display = ScreenDisplay(self._console, self._present)
        elif self._is_shown:
            self._display = LogDisplay(self._console.file, self._log_format)
        for notice in self._publisher.notices if self._publisher is not None else ():
            self.note(notice)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """End the display."""
        self._display.close(self._last)
        if self._publisher is not None:
            self._publisher.__exit__(kind, error, trace)

    @property
    def cell(self) -> int | None:
        """The number of the notebook's cell that ends with the summary; None elsewhere."""
        return number_of_cell() if isinstance(self._display, NotebookDisplay) else None

    def wait_for(self, what: str) -> None:
        """Say what the job waits for before it can run, e.g. ``Ray``."""
        self._set(replace(self._view, phase="starting", waits_for=what, fleet=None))

    def wait_for_servers(self, fleet: FleetView) -> None:
        """Say how far the servers are that the job starts."""
        words = f"{fleet.words}: {fleet.num_healthy} of {fleet.num_servers} are up"
        self._set(replace(self._view, phase="starting", waits_for=words, fleet=fleet))

    def scan(self, num_bytes: int, num_in_all: int) -> None:
        """Say how much of the input has been looked at; a terminal shows it where that takes a while."""
        if num_in_all >= MIN_BYTES_SHOWN:
            is_done = num_bytes >= num_in_all
            self._view = replace(self._view, scanned=None if is_done else (num_bytes, num_in_all))

    def begin(self, title: JobTitle, before: Counters) -> None:
        """
        Say what runs from now on.

        Args:
            title: The job.
            before: Counts of the rows that earlier runs had committed.
        """
        self._meter = Meter(title, before, self._started_s)
        self._view = replace(self._view, title=title, counters=before)

    def update(
        self,
        status: RunStatus,
        run: Counters,
        drain_left_s: float | None = None,
        rows: Iterable[Mapping[str, Any]] = (),
    ) -> View:
        """
        Show how the run stands, and return it.

        Args:
            status: From the engine.
            run: Counts of this run so far, open partitions included.
            drain_left_s: For how long requests in flight are still waited for while it stops; None otherwise.
            rows: A few of the newest finished rows.
        """
        assert self._meter is not None, "begin comes first"
        now_s = time.monotonic()
        view = self._meter.view(status, run, monotonic_s=now_s, now=time.time(), drain_left_s=drain_left_s)
        view = replace(view, rows=tuple(rows))
        self._set(view)
        return view

    def note_commit(self, report: PartitionReport) -> None:
        """Say that a partition has its file."""
        if self._publisher is not None:
            self._publisher.note_commit(report)

    def note(self, text: str) -> None:
        """Show a line that stays."""
        self._display.note(text)

    def remark(self, text: str) -> None:
        """Show a line that may help; a notebook's one output goes without."""
        self._display.remark(text)

    def finish(self, last: RenderableType) -> None:
        """Say that the job is complete; a notebook's output ends with `last`."""
        self._last = last

    def _set(self, view: View) -> None:
        self._viewed_s = time.monotonic()
        self._view = self._present(view)
        self._display.show(self._view)
        if self._publisher is not None:
            self._publisher.update(self._view)

    def _present(self, view: View | None = None) -> View:
        """Return the newest view with the times of this moment."""
        view, now_s = view or self._view, time.monotonic()
        left_s = view.drain_left_s
        if left_s is not None:
            left_s = max(0.0, left_s - (now_s - self._viewed_s))
        return replace(view, now=time.time(), elapsed_s=now_s - self._started_s, drain_left_s=left_s)
