"""
The answers of all partitions of one worker, in an object store: one new object a flush interval, whatever their number.

A line is the name of the partition, that of the attempt, and the line as a journal has it, with spaces in between. An
object is removed, together with others, once no partition needs it; many small ones are put together. Answers of a
partition that is committed before they are flushed are never put. `gather` sorts what dead workers have left. Knows
lines; knows nothing of what they say.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from nemo_llm_stage.dataset.failpoints import reach
from nemo_llm_stage.dataset.storage import Folder

logger = logging.getLogger(__name__)

STREAMS = "streams"
"""Folder in the job's state that has a folder for each worker."""

SMALL_BYTES = 4 << 20
"""Objects up to this size are put together once there are `MAX_SMALL` of them."""

MAX_SMALL = 64
_NUM_THREADS = 64
_LINE = re.compile(rb"(part-\d+) (\d+-[0-9a-f]+) (.+)", re.DOTALL)


class JournalStream:
    """
    Gathers the lines of a worker's partitions, and puts them as a new object once in a while. Safe for several threads.

    Args:
        folder: Of the worker, among `STREAMS`.
        flush_interval_s: Seconds between two objects. If the worker dies, its younger answers are lost.
    """

    def __init__(self, folder: Folder, flush_interval_s: float) -> None:
        self._folder = folder
        self._interval_s = flush_interval_s
        self._name = new_attempt()
        self._numbers = 0
        self._lock = threading.Lock()
        self._putting = threading.Lock()
        self._lines: defaultdict[str, list[bytes]] = defaultdict(list)
        self._open: dict[str, set[str]] = {}
        self._segments: dict[str, set[str]] = {}
        self._sizes: dict[str, int] = {}
        self._dead: list[str] = []
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def write(self, attempt: str, line: bytes) -> None:
        """Take a line of an attempt. Raises OSError where an earlier one could not be put."""
        if self._error is not None:
            raise OSError(f"{type(self._error).__name__}: {self._error}") from self._error
        with self._lock:
            self._open.setdefault(attempt, set())
            self._lines[attempt].append(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep_flushing, name="journal", daemon=True)
                self._thread.start()

    def retire(self, attempt: str) -> None:
        """Forget the lines of an attempt: nobody needs them any more."""
        with self._lock:
            self._lines.pop(attempt, None)
            for name in self._open.pop(attempt, ()):
                self._leave(name, attempt)

    def flush(self) -> None:
        """Put what is in memory now; what fails is told at the next `write`."""
        with self._putting:
            with self._lock:
                lines, self._lines = self._lines, defaultdict(list)
            try:
                if lines:
                    self._put(lines)
            except Exception as error:  # noqa: BLE001 - a store's library may raise anything; the next `write` tells
                self._error = error
                with self._lock:
                    for attempt, kept in self._lines.items():
                        lines[attempt] += kept
                    self._lines = lines

    def take(self, attempt: str) -> bytes:
        """
        Return the lines of an attempt as a journal has them.

        Raises:
            OSError: They cannot be read.
        """
        self.flush()
        with self._lock:
            names, left = sorted(self._open.get(attempt, ())), self._lines.get(attempt)
        if left:
            raise OSError(f"{type(self._error).__name__}: {self._error}") from self._error
        found = lines_in(read_all(self._folder, names))
        return b"".join(b"%b\n" % line for _, name, line in found if name == attempt)

    def _put(self, lines: dict[str, list[bytes]]) -> None:
        reach("stream.before_put")
        self._put_segment(b"".join(line for some in lines.values() for line in some), lines)
        reach("stream.after_put")

    def _put_segment(self, data: bytes, attempts: Collection[str]) -> None:
        self._numbers += 1
        name = f"{self._name}-{self._numbers:06}.jsonl"
        self._folder.fs.pipe_file(self._folder.path(name), data)
        with self._lock:
            self._sizes[name] = len(data)
            self._segments[name] = {attempt for attempt in attempts if attempt in self._open}
            for attempt in self._segments[name]:
                self._open[attempt].add(name)
            if not self._segments[name]:
                self._bury(name)

    def _leave(self, name: str, attempt: str) -> None:
        self._segments[name].discard(attempt)
        if not self._segments[name]:
            self._bury(name)

    def _bury(self, name: str) -> None:
        del self._segments[name], self._sizes[name]
        self._dead.append(name)

    def _keep_flushing(self) -> None:
        while True:
            time.sleep(self._interval_s)
            self.flush()
            try:
                self._merge_small()
                self._remove_dead()
            except Exception:  # what is left lies there until the job is done
                logger.debug("%s cannot be tidied", self._folder.url, exc_info=True)
            with self._lock:
                if not self._lines and not self._dead:  # the next line starts another thread
                    self._thread = None
                    return

    def _remove_dead(self) -> None:
        with self._lock:
            dead, self._dead = self._dead, []
        if dead:
            reach("stream.before_remove")
            self._folder.remove_all(dead)
            reach("stream.after_remove")

    def _merge_small(self) -> None:
        with self._putting:
            with self._lock:
                names = sorted(name for name, size in self._sizes.items() if size <= SMALL_BYTES)
            if len(names) < MAX_SMALL:
                return
            found = list(lines_in(read_all(self._folder, names)))
            with self._lock:
                kept = [words for words in found if words[1] in self._open]
            reach("stream.before_merge")
            if kept:
                data = b"".join(tagged(stem, attempt, line + b"\n") for stem, attempt, line in kept)
                self._put_segment(data, {attempt for _, attempt, _ in kept})
            reach("stream.after_merge")
            with self._lock:
                for name in names:
                    for attempt in list(self._segments.get(name, ())):
                        self._open[attempt].discard(name)
                        self._leave(name, attempt)


class StreamWriter:
    """
    Writes one attempt at a partition into a stream.

    Args:
        stream: Of the worker.
        folder: Of the partition's journals.
        attempt: Name of the attempt.

    Attributes:
        names: Of the files in `folder`.
    """

    def __init__(self, stream: JournalStream, folder: Folder, attempt: str) -> None:
        self.names: set[str] = set()
        self._stream = stream
        self._folder = folder
        self._attempt = attempt
        self._stem = folder.root.rsplit("/", 1)[-1]

    def write(self, line: bytes) -> None:
        """Take a line of a journal. Raises OSError where an earlier one could not be put."""
        self._stream.write(self._attempt, tagged(self._stem, self._attempt, line))

    def close(self) -> None:
        """Put what is left."""
        self._stream.flush()

    def discard(self) -> None:
        """Close without a call: nobody needs the lines any more."""
        self._stream.retire(self._attempt)

    def share(self) -> None:
        """
        Close, and put the lines where other workers look for them.

        Raises:
            OSError: The store failed.
        """
        data = self._stream.take(self._attempt)
        if data:
            name = f"{self._attempt}.jsonl"
            self._folder.fs.pipe_file(self._folder.path(name), data)
            self.names.add(name)
        self._stream.retire(self._attempt)


def new_attempt(after: str = "") -> str:
    """
    Return a name that nothing else has; later ones sort behind it.

    Args:
        after: An earlier name that it sorts behind, also where the clock of another machine is ahead.
    """
    newest = after.partition("-")[0]
    after_ns = int(newest) + 1 if newest.isdigit() else 0
    return f"{max(time.time_ns(), after_ns):019}-{uuid.uuid4().hex[:8]}"


def tagged(stem: str, attempt: str, line: bytes) -> bytes:
    """Return the line of a stream."""
    return f"{stem} {attempt} ".encode() + line


def worker_folder(state: Folder, index: int) -> Folder:
    """Return the folder of a worker's streams in the state of a job."""
    return Folder(f"{state.url}/{STREAMS}/{index:05}")


def read_all(folder: Folder, names: Iterable[str]) -> Iterator[bytes]:
    """Yield the bytes of files, side by side; nothing for those that are gone."""

    def read(name: str) -> bytes:
        with contextlib.suppress(FileNotFoundError):  # its worker has removed it: nobody needs it
            return folder.read(name)
        return b""

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        yield from pool.map(read, names)


def lines_in(datas: Iterable[bytes]) -> Iterator[tuple[str, str, bytes]]:
    """Yield partition, attempt and journal line of each line of streams."""
    for data in datas:
        for line in data.split(b"\n"):
            found = _LINE.fullmatch(line)
            if found is not None:
                yield found[1].decode(), found[2].decode(), found[3]
