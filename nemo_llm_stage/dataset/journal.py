"""
Every answer as it comes, on the disk before anything else happens with it.

One line an answer: checksum, space, JSON. A torn or corrupt line costs that answer and no other. Knows completions and
keys; knows nothing of rows or columns.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import threading
import time
import uuid
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from nemo_llm_stage.core import Completion, Usage
from nemo_llm_stage.dataset.failpoints import reach
from nemo_llm_stage.dataset.storage import Folder, unwritable

logger = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 2.0
"""On an object store, answers younger than this are lost with their worker: a segment is put as often."""

_CHECKSUM_CHARS = 8
_NUM_TRIES = 10


class Journal:
    """
    The answers of one partition, kept until it is committed.

    Several attempts at a partition, by workers that died or are still alive, write to files of their own; all of them
    are read, the latest first. An answer is handed out once: rows that ask the very same thing get answers of their
    own.

    On a local or NFS path every `put` is one `write`, so that `kill -9` loses nothing that was answered. On an object
    store, lines gather in memory and become a new object every `flush_interval_s`.

    Args:
        folder: The partition's own folder; files are ``<time>-<attempt>[-<segment>].jsonl``.
        kept: Where its raw answers are kept after the commit.
        reads_kept: Whether those of before are handed out too.
        surely: Names of attempts to be read even where the folder, as a network filesystem may, does not list them yet.
        passing_over: Names of attempts that are not read.
        flush_interval_s: Seconds; for object stores only.

    Attributes:
        attempt: Name of this one.
    """

    def __init__(
        self,
        folder: Folder,
        kept: Folder | None = None,
        *,
        reads_kept: bool = True,
        surely: Sequence[str] = (),
        passing_over: Sequence[str] = (),
        flush_interval_s: float = FLUSH_INTERVAL_S,
    ) -> None:
        self._folder = folder
        self._kept = kept
        self._answers: defaultdict[str, list[bytes]] = defaultdict(list)
        expected = {f"{name}.jsonl" for name in surely} if folder.is_local else set()
        for source in (folder, kept if reads_kept else None):
            if source is not None:
                names = source.names() | (expected if source is folder else set())
                for name in sorted(names, reverse=True):  # the latest answer to a request first
                    if not name.startswith(tuple(passing_over)):
                        self._load(source, name)
        self.attempt = attempt = f"{time.time_ns():019}-{uuid.uuid4().hex[:8]}"
        self._writer: _FileWriter | _SegmentWriter
        if folder.is_local:
            self._writer = _FileWriter(Path(folder.path(f"{attempt}.jsonl")))
        else:
            self._writer = _SegmentWriter(folder, attempt, flush_interval_s)

    @property
    def num_answers(self) -> int:
        """Answers of earlier attempts that no row has taken yet."""
        return sum(len(lines) for lines in self._answers.values())

    def get(self, key: str) -> Completion | None:
        """Take an answer of an earlier attempt to the request with this key; None where there is none."""
        lines = self._answers.get(key)
        return decode(lines.pop(0)) if lines else None

    def put(self, key: str, completion: Completion) -> None:
        """
        Keep an answer.

        Raises:
            RunError: The disk is full or the folder cannot be written; the answer is not kept.
        """
        try:
            reach("journal.before_write")
            self._writer.write(frame(key, completion))
        except OSError as error:
            raise unwritable(f"the journal in {self._folder.url}", error) from error
        reach("journal.after_write")

    def close(self) -> None:
        """Write out what is left and close. Safe to call twice."""
        self._writer.close()

    def retire(self, *, keep: bool) -> None:
        """Close; the answers are committed. Their files, of all attempts, are moved to `kept`, or removed."""
        self.close()
        reach("retire.before")
        retire_journal(self._folder, self._kept if keep else None)

    def _load(self, folder: Folder, file_name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            num_bad = 0
            for line in folder.read(file_name).rstrip(b"\n").split(b"\n"):
                body = unframe(line)
                if body is not None:
                    self._answers[orjson.loads(body)["k"]].append(body)
                elif line:
                    num_bad += 1
            if num_bad:
                _warn_of_torn_lines(folder.url, file_name, num_bad)


@functools.lru_cache(maxsize=1024)
def _warn_of_torn_lines(folder_url: str, file_name: str, num: int) -> None:
    """Once for a file, which may be read for many pieces of a partition."""
    logger.warning("%s/%s: %d torn or corrupt line(s); their rows are asked again", folder_url, file_name, num)


def retire_journal(folder: Folder, kept: Folder | None) -> None:
    """Move a committed partition's journal files to `kept`, or remove them where it is None."""
    for name in folder.names():
        if kept is None:
            folder.remove(name)
        else:
            kept.make()
            folder.move(name, kept)
        reach("retire.between")
    folder.remove_if_empty()
    reach("retire.after")


def frame(key: str, completion: Completion) -> bytes:
    """Return the journal line of an answer: CRC-32 of the JSON as 8 hex digits, a space, the JSON, a newline."""
    usage = completion.usage
    body = orjson.dumps(
        {
            "k": key,
            "t": completion.texts,
            "f": completion.finish_reasons,
            "r": completion.reasoning,
            "u": None if usage is None else (usage.input_tokens, usage.output_tokens, usage.cached_tokens),
            "m": completion.model,
            "e": completion.endpoint,
            "a": completion.attempts,
            "s": completion.latency_s,
            "p": completion.logprobs,
        }
    )
    return b"%08x %b\n" % (zlib.crc32(body), body)


def unframe(line: bytes) -> bytes | None:
    """Return the JSON of a journal line, or None where the line is torn or corrupt."""
    checksum, body = line[:_CHECKSUM_CHARS], line[_CHECKSUM_CHARS + 1 :]
    try:
        return body if int(checksum, 16) == zlib.crc32(body) and body else None
    except ValueError:
        return None


def decode(body: bytes) -> Completion:
    """Return the Completion of a journal line's JSON."""
    entry: dict[str, Any] = orjson.loads(body)
    return Completion(
        texts=tuple(entry["t"]),
        finish_reasons=tuple(entry["f"]),
        reasoning=tuple(entry["r"]),
        usage=None if entry["u"] is None else Usage(*entry["u"]),
        model=entry["m"],
        endpoint=entry["e"],
        attempts=entry["a"],
        latency_s=entry["s"],
        logprobs=tuple(entry["p"]),
    )


class _FileWriter:
    """Appends to one local file, one unbuffered write a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._is_torn = False

    def write(self, line: bytes) -> None:
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
            reach("journal.before_open")
            # Another run that has just committed the partition may take the empty folder away in between.
            with contextlib.suppress(FileNotFoundError):
                return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class _SegmentWriter:
    """Gathers lines and puts them as a new object once in a while, from a thread of its own."""

    def __init__(self, folder: Folder, stem: str, flush_interval_s: float) -> None:
        self._folder = folder
        self._stem = stem
        self._interval_s = flush_interval_s
        self._lines: list[bytes] = []
        self._lock = threading.Lock()
        self._num_segments = 0
        self._error: Exception | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, line: bytes) -> None:
        if self._error is not None:
            raise OSError(f"{type(self._error).__name__}: {self._error}") from self._error
        with self._lock:
            self._lines.append(line)
        if self._thread is None:
            self._thread = threading.Thread(target=self._flush_until_closed, name="journal", daemon=True)
            self._thread.start()

    def close(self) -> None:
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
            reach("journal.before_put")
            self._folder.fs.pipe_file(self._folder.path(f"{self._stem}-{self._num_segments:06}.jsonl"), b"".join(lines))
        except Exception as error:  # noqa: BLE001 - a store's library may raise anything; the next `write` tells
            self._error = error
            with self._lock:
                self._lines = lines + self._lines
        else:
            self._num_segments += 1
            reach("journal.after_put")
