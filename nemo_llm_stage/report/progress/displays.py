"""
Where a view is shown: a terminal's screen that renews itself, a log's lines, a notebook's cell, or nowhere.

Knows terminals and files; how a view looks is `screen`'s and `log_line`'s.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from importlib import import_module
from typing import IO, Any, Literal, Protocol

from rich.console import Group, RenderableType
from rich.live import Live

from nemo_llm_stage.report.console import PlainConsole, shown
from nemo_llm_stage.report.progress.log_line import json_line, text_line
from nemo_llm_stage.report.progress.screen import lines
from nemo_llm_stage.report.progress.view import View

REFRESH_PER_S = 2.0
FIRST_LINES_EVERY_S, LINES_EVERY_S, FIRST_LINES_S = 10.0, 30.0, 120.0
"""A log gets a line every 10 s for the first two minutes and every 30 s after them, and one at each change of state."""

NOTEBOOK_EVERY_S = 1.0
NOTEBOOK_WIDTH = 100


class Display(Protocol):
    """Shows a job."""

    def show(self, view: View) -> None:
        """Show how the job stands now. Called about twice a second."""

    def note(self, text: str) -> None:
        """Show a line that stays."""

    def close(self, last: RenderableType | None) -> None:
        """End the display; `last` is the summary of a job that is complete."""


class NoDisplay:
    """Shows nothing."""

    def show(self, view: View) -> None:
        """See `Display`."""

    def note(self, text: str) -> None:
        """See `Display`."""

    def close(self, last: RenderableType | None) -> None:
        """See `Display`."""


class ScreenDisplay:
    """
    A few lines at the bottom of a terminal. What else is written to the terminal appears above them.

    Args:
        console: Of the terminal.
        view: Returns the newest view, brought up to the present; called from the thread that renews the screen.
    """

    def __init__(self, console: PlainConsole, view: Callable[[], View]) -> None:
        self._console = console
        self._view = view
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=REFRESH_PER_S, vertical_overflow="crop"
        )
        self._live.start()

    def show(self, view: View) -> None:
        """Nothing to do: the screen renews itself."""

    def note(self, text: str) -> None:
        """See `Display`."""
        self._console.print(shown(text))

    def close(self, last: RenderableType | None) -> None:
        """Clear the screen if the job is complete, and leave it as it stands otherwise."""
        self._live.transient = last is not None
        self._live.stop()

    def _render(self) -> Group:
        return Group(*lines(self._view(), self._console.width))


class LogDisplay:
    """
    A line now and then, never wrapped.

    Args:
        stream: Where to.
        log_format: ``text`` or ``json``.
    """

    def __init__(self, stream: IO[str], log_format: Literal["text", "json"]) -> None:
        self._stream = stream
        self._format = json_line if log_format == "json" else text_line
        self._is_json = log_format == "json"
        self._state: tuple[object, ...] | None = None
        self._view: View | None = None
        self._next_at = FIRST_LINES_EVERY_S

    def show(self, view: View) -> None:
        """Write a line if it is time, or if the state has changed."""
        self._view = view
        state = (view.phase, view.waits_for, view.stalled_since is not None, tuple(each.url for each in view.down))
        event = None if state == self._state else _event(self._state, view)
        if event is None and view.elapsed_s < self._next_at:
            self._state = state
            return
        every_s = FIRST_LINES_EVERY_S if view.elapsed_s < FIRST_LINES_S else LINES_EVERY_S
        self._state, self._next_at = state, view.elapsed_s + every_s
        self._write(self._format(view, event))

    def note(self, text: str) -> None:
        """Write the text as it is; machines do not get it."""
        if not self._is_json:
            self._write(str(shown(text)))

    def close(self, last: RenderableType | None) -> None:
        """Write a last line for a job that is complete."""
        if last is not None and self._view is not None:
            self._write(self._format(self._view, "complete"))

    def _write(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


def _event(before: tuple[object, ...] | None, view: View) -> str | None:
    """Return the name of the change of state that is worth a line."""
    phase, _, was_stalled, were_down = before or ("", None, False, ())
    if view.phase != phase or view.waits_for:
        return {"starting": "starting", "draining": "draining", "paused": "paused"}.get(view.phase, "running")
    is_bad, was_bad = bool(view.down) or view.stalled_since is not None, bool(were_down) or was_stalled
    if is_bad == was_bad:
        return None
    return "outage_begins" if is_bad else "outage_ends"


class NotebookDisplay:
    """One output of a notebook's cell that renews itself, and ends with the summary."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._next_at = 0.0

    def show(self, view: View) -> None:
        """Renew the output, at most once a second."""
        if view.now >= self._next_at:
            self._next_at = view.now + NOTEBOOK_EVERY_S
            self._put(Group(*lines(view, NOTEBOOK_WIDTH)))

    def note(self, text: str) -> None:
        """Print it above."""
        sys.stdout.write(f"{shown(text)}\n")

    def close(self, last: RenderableType | None) -> None:
        """Show the summary of a job that is complete."""
        if last is not None:
            self._put(last)

    def _put(self, what: RenderableType) -> None:
        display = import_module("IPython.display").display
        bundle = {"text/plain": as_text(what), "text/html": as_html(what)}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def as_html(what: RenderableType) -> str:
    """Return what rich shows as a fragment of HTML; all text in it is escaped."""
    console = _recorder(what)
    font = "font-family:monospace;line-height:1.35;white-space:pre;overflow-x:auto;background:none"
    return console.export_html(inline_styles=True, code_format=f'<pre style="{font}">{{code}}</pre>')


def as_text(what: RenderableType) -> str:
    """Return what rich shows as plain text."""
    return _recorder(what).export_text()


def _recorder(what: RenderableType) -> PlainConsole:
    console = PlainConsole(record=True, file=io.StringIO(), width=NOTEBOOK_WIDTH, force_jupyter=False)
    console.print(what)
    return console


def is_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")
