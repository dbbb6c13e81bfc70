"""
What others write to stderr while a screen is up: kept off the screen, and shown above it line by line.

Libraries in C, Ray's above all, write to the file descriptor, past `sys.stderr`, into the middle of a screen. While one
is up the descriptor is a file, which nobody can block and which outlives a crash. Knows file descriptors; knows nothing
of jobs.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from nemo_llm_stage.report.console import PlainConsole, shown

STDERR = 2
MAX_LINES = 20
"""Lines that are shown at a time; of more, the last ones."""

_COLOR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class ForeignLines:
    """
    Takes what is written to the descriptor of stderr from `begin` to `end`.

    Does nothing for a console that is not on stderr, and where no other stream tells the size of the terminal.

    Args:
        console: Of the screen; it goes on to write to the terminal.
    """

    def __init__(self, console: PlainConsole) -> None:
        self._console = console
        self._before: IO[str] | None = None
        self._path = Path()
        self._reader: IO[bytes] | None = None
        self._rest = b""

    def begin(self) -> None:
        """Put a file in the place of the terminal."""
        if not _is_stderr(self._console.file) or not any(map(os.isatty, (0, 1))):
            return
        handle, name = tempfile.mkstemp(prefix=f"nemo-llm-stage-{os.getpid()}-", suffix=".stderr.txt")
        os.close(handle)
        self._path, self._before = Path(name), self._console.file
        self._reader = self._path.open("rb")
        self._before.flush()
        self._console.file = os.fdopen(os.dup(STDERR), "w", encoding=self._console.encoding, errors="backslashreplace")
        file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, STDERR)
        os.close(file)

    def show(self, *, is_last: bool = False) -> None:
        """Print the lines that have come since the last call; a line without its end waits for it unless `is_last`."""
        if self._reader is None:
            return
        *lines, self._rest = (self._rest + self._reader.read()).split(b"\n")
        if is_last and self._rest:
            lines.append(self._rest)
        if len(lines) > MAX_LINES:
            lines = [f"… {len(lines) - MAX_LINES:,} lines more".encode(), *lines[-MAX_LINES:]]
        for line in lines:
            self._console.print(shown(_COLOR.sub("", line.decode("utf-8", "replace")).rstrip("\r"), "dim"))

    def end(self) -> None:
        """Give the terminal back."""
        if self._before is None:
            return
        with suppress(ValueError, OSError):
            sys.stderr.flush()
        terminal = self._console.file
        os.dup2(terminal.fileno(), STDERR)
        self.show(is_last=True)
        self._console.file = self._before
        terminal.close()
        if self._reader is not None:
            self._reader.close()
        self._path.unlink(missing_ok=True)
        self._before = self._reader = None


def _is_stderr(stream: Any) -> bool:
    try:
        return bool(stream.fileno() == STDERR)
    except (AttributeError, OSError, ValueError):  # a stream without a descriptor, e.g. a test's
        return False
