"""
The console that everything is shown on: text stays text.

Rows, answers, errors and names come from outside. What looks like rich's markup in them (``[/INST]``, ``[bold]``) is
shown as it stands, and what would act on the terminal is shown as an escape. A terminal that is closed, or a reader
that has read enough, ends what is shown and not what runs. Knows nothing of jobs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console
from rich.text import Text

from nemo_llm_stage.text import printable


class PlainConsole(Console):
    """A console without markup, emoji codes and highlighting; every string on it is made printable."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **settings})

    @property
    def file(self) -> IO[str]:
        """Where it writes to; writing there never fails."""
        return cast("IO[str]", _LastingStream(super().file))

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream

    def render_str(self, text: str, **options: Any) -> Text:
        """Return `text` as rich's own type; called for each string that is printed, within a table too."""
        return super().render_str(printable(text), **options)


def shown(value: object, style: str = "") -> Text:
    """Return `value` as text in a style; printable wherever it is put, in a panel's title too."""
    return Text(printable(str(value)), style=style)


_GONE = {errno.EPIPE, errno.EIO, errno.ENXIO}
"""Error numbers of a stream that nobody reads any more: a pipe, a terminal."""


class _LastingStream:
    """A stream that may be gone: what is written to it then goes nowhere."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, step: Callable[[], object]) -> None:
        try:
            step()
        except OSError as error:  # a full disk, under a log, may have room again
            if error.errno in _GONE:
                _silence(self._stream)


def _silence(stream: IO[str]) -> None:
    """Let a stream, and all that writes to its descriptor, write to nowhere."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
