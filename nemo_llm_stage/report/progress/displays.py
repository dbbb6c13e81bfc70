"""
Where a view is shown: a terminal's screen that renews itself, a log's lines, a notebook's cell, or nowhere.

Knows terminals and files; how a view looks is `screen`'s and `log_line`'s.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any, Literal, Protocol

from rich.console import Group, RenderableType
from rich.live import Live
from rich.segment import Segments
from rich.text import Text

from nemo_llm_stage.report.console import PlainConsole, shown
from nemo_llm_stage.report.progress.foreign import ForeignLines
from nemo_llm_stage.report.progress.log_line import json_line, text_line
from nemo_llm_stage.report.progress.screen import lines
from nemo_llm_stage.report.progress.view import View

RENEW_EVERY_S, START_RENEW_EVERY_S = 1.0, 0.25
"""A screen is renewed as often, and while a job starts. Each time takes the interpreter from the rows for a moment."""

FIRST_LINES_EVERY_S, LINES_EVERY_S, FIRST_LINES_S = 10.0, 30.0, 120.0
"""A log gets a line every 10 s for the first two minutes and every 30 s after them, and one at each change of state."""

MAX_SERVERS_TOLD = 8
"""While more servers are down, only the end of all of them is worth a line of its own."""

NOTEBOOK_EVERY_S = 1.0
NOTEBOOK_WIDTH = 100


class Display(Protocol):
    """Shows a job."""

    def show(self, view: View) -> None:
        """Show how the job stands now. Called about twice a second."""

    def note(self, text: str) -> None:
        """Show a line that stays."""

    def remark(self, text: str) -> None:
        """Show a line that may help, or as much of it as fits."""

    def close(self, last: RenderableType | None) -> None:
        """End the display; `last` is the summary of a job that is complete."""


class NoDisplay:
    """Shows nothing."""

    def show(self, view: View) -> None:
        """See `Display`."""

    def note(self, text: str) -> None:
        """See `Display`."""

    def remark(self, text: str) -> None:
        """See `Display`."""

    def close(self, last: RenderableType | None) -> None:
        """See `Display`."""


class ScreenDisplay:
    """
    A few lines at the bottom of a terminal. What else is written to the terminal, also by C code, appears above them.

    Args:
        console: Of the terminal.
        view: Returns the newest view, brought up to the present; called from the thread that renews the screen.
    """

    def __init__(self, console: PlainConsole, view: Callable[[], View]) -> None:
        self._console = console
        self._view = view
        self._foreign = ForeignLines(console)
        self._live = Live(console=console, get_renderable=self._render, auto_refresh=False, vertical_overflow="crop")
        self._state = ("", True)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="screen", daemon=True)
        self._foreign.begin()
        self._live.start()
        self._thread.start()

    def show(self, view: View) -> None:
        """Show the first answer and a new phase at once; otherwise the screen renews itself."""
        state = (view.phase, view.rows_per_s is None)
        if state != self._state:
            self._state = state
            self._live.refresh()

    def note(self, text: str) -> None:
        """See `Display`."""
        self._console.print(shown(text))

    def remark(self, text: str) -> None:
        """See `Display`: what does not fit on a line is cut."""
        self._console.print(shown(text), no_wrap=True, overflow="ellipsis")

    def close(self, last: RenderableType | None) -> None:
        """Clear the screen if the job is complete or did not begin, and leave it as it stands otherwise."""
        self._is_over.set()
        self._thread.join()
        self._live.transient = last is not None or self._view().phase == "starting"
        self._foreign.show()
        self._live.stop()
        self._foreign.end()

    def _renew(self) -> None:
        while not self._is_over.wait(START_RENEW_EVERY_S if self._view().phase == "starting" else RENEW_EVERY_S):
            self._live.refresh()

    def _render(self) -> Segments:
        self._foreign.show()
        screen = Text("\n").join(lines(self._view(), self._console.width))
        return Segments(screen.render(self._console, "\n"))  # the lines fit; rich would wrap and measure each again


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
        self._state = _State()
        self._view: View | None = None
        self._next_at = FIRST_LINES_EVERY_S

    def show(self, view: View) -> None:
        """Write a line if it is time, or if the state has changed."""
        self._view = view
        state = _State.of(view)
        event = None if state == self._state else state.event_since(self._state)
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

    def remark(self, text: str) -> None:
        """See `Display`."""
        self.note(text)

    def close(self, last: RenderableType | None) -> None:
        """Write a last line for a job that is complete."""
        if last is not None and self._view is not None:
            self._write(self._format(self._view, "complete"))

    def _write(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


@dataclass(frozen=True, slots=True)
class _State:
    """
    What a log tells as soon as it changes.

    Attributes:
        phase: What the run does.
        waits_for: See `View`.
        down: The servers that cannot be reached.
        is_out: Whether none answers.
    """

    phase: str = ""
    waits_for: str | None = None
    down: frozenset[str] = frozenset()
    is_out: bool = False

    @classmethod
    def of(cls, view: View) -> _State:
        down = frozenset(each.url for each in view.down)
        is_out = view.stalled_since is not None or (bool(down) and len(down) == len(view.endpoints))
        return cls(view.phase, view.waits_for, down, is_out)

    def event_since(self, before: _State) -> str | None:
        """Return the name of the change that is worth a line; None where none is."""
        if self.phase != before.phase or self.waits_for:
            return self.phase
        if self.is_out != before.is_out:
            return "outage_begins" if self.is_out else "outage_ends"
        if self.is_out or max(len(self.down), len(before.down)) > MAX_SERVERS_TOLD:
            return None
        return "server_down" if self.down - before.down else "server_back" if before.down - self.down else None


class NotebookDisplay:
    """One output of a notebook's cell that renews itself, and ends with the summary."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._next_at = 0.0

    def show(self, view: View) -> None:
        """Renew the output, at most once a second."""
        if view.now >= self._next_at:
            self._next_at = view.now + NOTEBOOK_EVERY_S
            self._put(Group(*lines(view, NOTEBOOK_WIDTH, interrupt="interrupt the kernel")))

    def note(self, text: str) -> None:
        """Print it above."""
        sys.stdout.write(f"{shown(text)}\n")

    def remark(self, text: str) -> None:
        """See `Display`: a notebook's one output goes without."""

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


def number_of_cell() -> int | None:
    """Return the number of the notebook's cell that runs now; None where there is no notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return None if shell is None else getattr(shell, "execution_count", None)


def show_result(what: RenderableType) -> None:
    """Show the result of a notebook's cell, or of an IPython prompt, as text and as HTML."""
    bundle = {"text/plain": as_text(what), "text/html": as_html(what)}
    import_module("IPython.display").display(bundle, raw=True)
