"""
Every answer as it arrives, on the disk before anything else happens with it.

The line format is `journal_format`. A torn or corrupt line costs that answer and no other. Knows completions and keys;
knows nothing of rows or columns.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_llm_stage.core import Completion
from nemo_llm_stage.dataset.failpoints import reach
from nemo_llm_stage.dataset.journal_format import decode, encode_line, read_key, read_line
from nemo_llm_stage.dataset.journal_stream import JournalStream, StreamWriter, new_attempt
from nemo_llm_stage.dataset.journal_writers import FileWriter, SegmentWriter
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.dataset.writing import unwritable
from nemo_llm_stage.errors import OutputConflictError

logger = logging.getLogger(__name__)

_NUM_TRIES = 10


@dataclass(frozen=True, slots=True)
class JournalStatistics:
    """
    How a journal stands.

    Attributes:
        num_loaded: Answers of earlier attempts that it found.
        num_left: Answers of earlier attempts that no row has taken yet.
        num_torn: Lines of earlier attempts that are torn or corrupt.
        num_written: Answers that this attempt has written.
    """

    num_loaded: int
    num_left: int
    num_torn: int
    num_written: int


class Journal:
    """
    The answers of one partition, until the partition is committed.

    Each attempt at a partition writes a file of its own, so that workers that died and workers that are alive do not
    disturb each other. A journal reads the files of all earlier attempts, the latest first. It hands each answer out
    once: rows with identical requests get answers of their own.

    On a local or NFS path every `put` is one `write`, so that ``kill -9`` loses no answer. On an object store, lines
    gather in memory and become a new object every `flush_interval_s`.

    Args:
        folder: The partition's own folder; files are ``<time>-<attempt>[-<segment>].jsonl``.
        kept: Folder in which raw answers are kept after the commit.
        reads_kept: Whether answers in `kept` are handed out too.
        expected: Attempts that have ended: their answers are handed out first, in this order. Their journals are
            opened even if a stale NFS listing omits them.
        ignored: Attempts whose journals are not read.
        is_fresh: Whether the folders are known to have nothing for the partition: they are not looked into.
        flush_interval_s: Seconds between two segments on an object store. If the worker dies, its younger answers are
            lost. A local journal does not use it.
        stream: Gets the answers, on an object store, together with those of other partitions; None puts them into
            segments of their own.

    Attributes:
        attempt: Name of this attempt.

    Raises:
        OutputConflictError: A newer version of this package wrote a line.
        OSError: The folder cannot be read.
    """

    def __init__(
        self,
        folder: Folder,
        kept: Folder | None = None,
        *,
        reads_kept: bool = True,
        expected: Sequence[str] = (),
        ignored: Sequence[str] = (),
        is_fresh: bool = False,
        flush_interval_s: float,
        stream: JournalStream | None = None,
    ) -> None:
        self._folder = folder
        self._kept = kept
        self._answers: defaultdict[str, list[bytes]] = defaultdict(list)
        self._num_loaded = self._num_torn = self._num_written = 0
        self._read: set[str] = set()
        self._attempts: set[str] = set()
        if not is_fresh:
            self._load_earlier(expected, ignored, reads_kept=reads_kept)
        self.attempt = attempt = new_attempt()
        self._writer: FileWriter | SegmentWriter | StreamWriter
        if stream is not None:
            self._writer = StreamWriter(stream, folder, attempt)
        elif folder.is_local:
            self._writer = FileWriter(Path(folder.path(f"{attempt}.jsonl")))
        else:
            self._writer = SegmentWriter(folder, attempt, flush_interval_s)
        logger.debug("opened the journal %s: %s", folder.url, self.statistics())

    def statistics(self) -> JournalStatistics:
        """Return how many answers were found, are left and were written."""
        num_left = sum(len(lines) for lines in self._answers.values())
        return JournalStatistics(self._num_loaded, num_left, self._num_torn, self._num_written)

    def get(self, key: str) -> Completion | None:
        """Take an answer of an earlier attempt to the request with this key; None if there is none."""
        lines = self._answers.get(key)
        while lines:
            completion = decode(lines.pop(0))
            if completion is not None:
                return completion
        return None

    def put(self, key: str, completion: Completion) -> None:
        """
        Keep an answer.

        Raises:
            RunError: The disk is full or the folder cannot be written; the answer is not kept.
        """
        try:
            reach("journal.before_write")
            self._writer.write(encode_line(key, completion))
        except OSError as error:
            raise unwritable(f"the journal in {self._folder.url}", error) from error
        self._num_written += 1
        reach("journal.after_write")

    def close(self) -> None:
        """Write what is still in memory and close. Safe to call twice."""
        self._writer.close()

    def share(self) -> None:
        """
        Write what is still in memory where other workers look for it, and close.

        Raises:
            RunError: The store failed.
        """
        if not isinstance(self._writer, StreamWriter):
            self._writer.close()
            return
        try:
            self._writer.share()
        except OSError as error:
            raise unwritable(f"the journal in {self._folder.url}", error) from error

    def retire(self, *, keep: bool) -> None:
        """
        Close, and put away the files whose answers are committed: the files read at the start, and its own.

        Files that another worker has begun since then stay: their answers may be in no committed file.

        Args:
            keep: Whether the files are moved to `kept`; otherwise they are removed.
        """
        if keep:
            self.close()
        else:
            self._writer.discard()
        logger.debug("retired the journal %s: %s", self._folder.url, self.statistics())
        reach("retire.before")
        retire_journal(self._folder, self._kept if keep else None, self._writer.names | self._read)

    def _load_earlier(self, expected: Sequence[str], ignored: Sequence[str], *, reads_kept: bool) -> None:
        for name in self._files_to_read(self._folder, expected, ignored):
            self._load(self._folder, name)
            self._read.add(name)
        if self._kept is not None and reads_kept:
            for name in self._files_to_read(self._kept, (), ignored):
                self._load(self._kept, name)

    def _files_to_read(self, folder: Folder, expected: Sequence[str], ignored: Sequence[str]) -> Iterator[str]:
        """Yield the names of files with answers: those of ended attempts, then the others, the latest first."""
        named = {f"{name}.jsonl" for name in expected} if folder.is_local else set()
        ranks = {name: rank for rank, name in enumerate(expected)}
        names = sorted(folder.names() | named, reverse=True)
        for name in sorted(names, key=lambda name: ranks.get(_attempt_of(name), len(ranks))):
            if not name.startswith(tuple(ignored)):
                yield name

    def _load(self, folder: Folder, file_name: str) -> None:
        attempt = _attempt_of(file_name)
        is_again = attempt in self._attempts  # streams may have been gathered twice
        self._attempts.add(attempt)
        with contextlib.suppress(FileNotFoundError):
            num_torn = 0
            for line in folder.read(file_name).rstrip(b"\n").split(b"\n"):
                body = read_line(line)
                key = None if body is None else _key_in(folder, file_name, body)
                if body is not None and key is not None:
                    if is_again and body in self._answers[key]:
                        continue
                    self._answers[key].append(body)
                    self._num_loaded += 1
                elif line:
                    num_torn += 1
            if num_torn:
                self._num_torn += num_torn
                _warn_of_torn_lines(folder.url, file_name, num_torn)


def _attempt_of(file_name: str) -> str:
    return "-".join(file_name.removesuffix(".jsonl").split("-")[:2])


def _key_in(folder: Folder, file_name: str, body: bytes) -> str | None:
    try:
        return read_key(body)
    except OutputConflictError as error:
        raise OutputConflictError(f"cannot read the journal {folder.url}/{file_name}: {error}") from error


@functools.lru_cache(maxsize=1024)
def _warn_of_torn_lines(folder_url: str, file_name: str, num: int) -> None:
    """Warn once for each file: it may be read for many pieces of a partition."""
    logger.warning("%s/%s: %d torn or corrupt line(s); their rows are sent again", folder_url, file_name, num)


def retire_journal(folder: Folder, kept: Folder | None, names: Collection[str] | None = None) -> None:
    """
    Put away journal files of a committed partition.

    Args:
        folder: The partition's journals.
        kept: Where they are moved to; None removes them.
        names: The files; None takes all.
    """
    chosen = sorted(folder.names() if names is None else names)
    if kept is None and not folder.is_local:
        folder.remove_all(chosen)
        reach("retire.between")
        chosen = []
    for name in chosen:
        if kept is None:
            folder.remove(name)
        else:
            kept.make()
            folder.move(name, kept)
        reach("retire.between")
    folder.remove_if_empty()
    reach("retire.after")
