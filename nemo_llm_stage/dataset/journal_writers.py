"""
Where a journal's lines go: appended to a local file, or put as objects of a store.

Knows lines; knows nothing of what they say.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path

from nemo_llm_stage.dataset.failpoints import reach
from nemo_llm_stage.dataset.storage import Folder

_NUM_TRIES = 10


class FileWriter:
    """
    Appends to one local file, one unbuffered write a line.

    Args:
        path: The file.
        kind: First word of the failpoints.

    Attributes:
        names: Of the files written so far.
    """

    def __init__(self, path: Path, kind: str = "journal") -> None:
        self.names: set[str] = set()
        self._path = path
        self._kind = kind
        self._fd: int | None = None
        self._is_torn = False

    def write(self, line: bytes) -> None:
        """Append `line`. Raises OSError where the disk is full."""
        if self._fd is None:
            self._fd = self._open()
        if self._is_torn:  # half a line must not spoil this one
            line = b"\n" + line
        num_written = os.write(self._fd, line)
        self._is_torn = num_written < len(line)
        if self._is_torn:
            os.write(self._fd, line[num_written:])  # raises where the disk is full
            self._is_torn = False

    def _open(self) -> int:
        for _ in range(_NUM_TRIES):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            reach(f"{self._kind}.before_open")
            # Another run that has just committed the partition may take the empty folder away in between.
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                self.names.add(self._path.name)
                return fd
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))

    def close(self) -> None:
        """Close the file; `write` opens it again."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def discard(self) -> None:
        """Close: nobody needs the lines any more."""
        self.close()


class SegmentWriter:
    """
    Gathers lines and puts them as a new object once in a while, from a thread of its own.

    Args:
        folder: Gets the objects.
        stem: Their names begin with it.
        flush_interval_s: Seconds between two of them.
        kind: First word of the failpoints.

    Attributes:
        names: Of the objects put so far.
    """

    def __init__(self, folder: Folder, stem: str, flush_interval_s: float, kind: str = "journal") -> None:
        self._folder = folder
        self._stem = stem
        self._kind = kind
        self._interval_s = flush_interval_s
        self._lines: list[bytes] = []
        self._lock = threading.Lock()
        self.names: set[str] = set()
        self._error: Exception | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, line: bytes) -> None:
        """Take `line`. Raises OSError where an earlier one could not be put."""
        if self._error is not None:
            raise OSError(f"{type(self._error).__name__}: {self._error}") from self._error
        with self._lock:
            self._lines.append(line)
        if self._thread is None:
            self._thread = threading.Thread(target=self._flush_until_closed, name="journal", daemon=True)
            self._thread.start()

    def discard(self) -> None:
        """Close without a call for the lines in memory: nobody needs them any more."""
        with self._lock:
            self._lines = []
        self.close()

    def close(self) -> None:
        """Put what is left."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _flush_until_closed(self) -> None:
        while not self._closing.wait(self._interval_s):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            reach(f"{self._kind}.before_put")
            name = f"{self._stem}-{len(self.names):06}.jsonl"
            self._put(name, b"".join(lines))
        except Exception as error:  # noqa: BLE001 - a store's library may raise anything; the next `write` tells
            self._error = error
            with self._lock:
                self._lines = lines + self._lines
        else:
            self.names.add(name)
            reach(f"{self._kind}.after_put")

    def _put(self, name: str, data: bytes) -> None:
        self._folder.fs.pipe_file(self._folder.path(name), data)
