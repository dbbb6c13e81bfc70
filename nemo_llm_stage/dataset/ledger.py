"""
``ledger/`` in the state folder: what each committed file counts, so that a resume need not open the files.

The files stay the truth. An entry holds only for a file that is there with the size, and where it is known the version,
that the entry tells; any other file is read. The driver appends an entry when a worker has reported a commit: to a
local file of its own, or to segments on an object store. Whoever reads the ledger may write it anew as one file.

A line is the CRC-32 of its JSON as 8 hex digits, a space, the JSON and a newline, as in a journal. The JSON is one
object; a later line about the same file counts in place of an earlier one:

=====  ==================================================================================
key    value
=====  ==================================================================================
``v``  version of this format
``n``  name of the committed file
``j``  id of the job that wrote it
``s``  its size in bytes
``t``  its version: time of change in nanoseconds on local disks, ETag on stores; null where it is not known
``c``  its counts without those that are 0; null where the file may be replaced: earlier lines are void
=====  ==================================================================================
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.failpoints import reach
from nemo_llm_stage.dataset.file_stat import FileStat
from nemo_llm_stage.dataset.journal_format import read_line
from nemo_llm_stage.dataset.journal_stream import new_attempt, read_all
from nemo_llm_stage.dataset.journal_writers import FileWriter, SegmentWriter
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.dataset.summary import TMP

logger = logging.getLogger(__name__)

LEDGER = "ledger"
VERSION = 1

FLUSH_INTERVAL_S = 5.0
"""Between two segments on an object store. Files committed since the last one are read if the driver dies."""

SEGMENTS_PER_MERGE = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """
    What the ledger tells of one committed file.

    Attributes:
        name: The file's.
        job_id: Of the job that wrote it.
        stat: Of the file that the counts are of.
        counters: What it counts.
    """

    name: str
    job_id: str
    stat: FileStat
    counters: Counters

    def holds_for(self, stat: FileStat) -> bool:
        """Whether a file with this `stat` is the one that was counted."""
        is_known = self.stat.version is not None and stat.version is not None
        return self.stat.size == stat.size and not (is_known and self.stat.version != stat.version)

    def encode(self) -> bytes:
        """Return its line."""
        counts = self.counters.without_zeros()
        values = {"v": VERSION, "n": self.name, "j": self.job_id, "s": self.stat.size, "t": self.stat.version}
        return _line({**values, "c": counts})


def ledger_folder(state: Folder) -> Folder:
    """Return the folder of the ledger in the state folder of a job."""
    return Folder(f"{state.url}/{LEDGER}")


@dataclass(frozen=True, slots=True)
class Ledger:
    """
    A ledger as it was read.

    Attributes:
        entries: By the name of the file; those that are not void.
        files: Names of its own files.
    """

    entries: Mapping[str, Entry]
    files: tuple[str, ...]


def read_ledger(state: Folder) -> Ledger:
    """
    Return what the ledger of a job tells; lines that are damaged or of a later version tell nothing.

    Raises:
        OSError: It cannot be read.
    """
    folder = ledger_folder(state)
    files = tuple(sorted(folder.names()))
    entries: dict[str, Entry] = {}
    for data in read_all(folder, files):  # nothing for those that another run has just put into one
        for line in data.splitlines():
            _take(line, entries)
    return Ledger(entries, files)


def rewrite_ledger(state: Folder, ledger: Ledger, entries: Iterable[Entry]) -> None:
    """
    Put one file with `entries` in the place of those that were read.

    Raises:
        OSError: It cannot be written.
    """
    reach("ledger.before_rewrite")
    _put_file(state, b"".join(entry.encode() for entry in entries))
    reach("ledger.between_rewrite")
    ledger_folder(state).remove_all(ledger.files)
    reach("ledger.after_rewrite")


def take_back(state: Folder, names: Collection[str]) -> None:
    """
    Make void what is told of files that are about to be replaced.

    Raises:
        OSError: It cannot be written.
    """
    if names:
        _put_file(state, b"".join(_line({"v": VERSION, "n": name, "c": None}) for name in names))


class LedgerWriter:
    """
    Appends to the ledger of a job. What fails here costs a later run the reading of files, and never the job.

    Args:
        state: The state folder of the job.
        flush_interval_s: Seconds between two segments on an object store.

    Raises:
        OSError: The folder cannot be read.
    """

    def __init__(self, state: Folder, *, flush_interval_s: float = FLUSH_INTERVAL_S) -> None:
        self._folder = folder = ledger_folder(state)
        self._has_failed = False
        stem = new_attempt(after=max(folder.names(), default=""))
        self._writer: FileWriter | SegmentWriter
        if folder.is_local:
            self._writer = FileWriter(Path(folder.path(f"{stem}.jsonl")), LEDGER)
        else:
            self._writer = _MergingWriter(folder, stem, flush_interval_s)

    def __enter__(self) -> Self:
        """Do nothing; the first entry opens the file."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Write what is still in memory."""
        self._attempt(self._writer.close)

    def add(self, entries: Collection[Entry]) -> None:
        """Tell of committed files."""
        if entries:
            self._attempt(lambda: self._write(entries))

    def _write(self, entries: Iterable[Entry]) -> None:
        reach("ledger.before_write")
        self._writer.write(b"".join(entry.encode() for entry in entries))
        reach("ledger.after_write")

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (OSError, TypeError) as error:
            level = logging.DEBUG if self._has_failed else logging.WARNING
            self._has_failed = True
            logger.log(level, "%s cannot be written; a later run reads the files: %s", self._folder.url, error)


class _MergingWriter(SegmentWriter):
    """Puts each 64 segments together into one, under the name of the last."""

    def __init__(self, folder: Folder, stem: str, flush_interval_s: float) -> None:
        super().__init__(folder, stem, flush_interval_s, LEDGER)
        self._recent: dict[str, bytes] = {}

    def _put(self, name: str, data: bytes) -> None:
        super()._put(name, data)
        self._recent[name] = data
        if len(self._recent) < SEGMENTS_PER_MERGE:
            return
        reach("ledger.before_merge")
        super()._put(name, b"".join(self._recent.values()))
        reach("ledger.between_merge")
        self._folder.remove_all(self._recent.keys() - {name})
        self._recent.clear()
        reach("ledger.after_merge")


def _put_file(state: Folder, data: bytes) -> None:
    """Put a file of the ledger, which is read after those that are there."""
    folder = ledger_folder(state)
    folder.make()
    stem = new_attempt(after=max(folder.names(), default=""))
    state.replace_bytes(data, f"{LEDGER}/{stem}.jsonl", scratch_sub=TMP)


def _line(values: Mapping[str, Any]) -> bytes:
    body = orjson.dumps(values)
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _take(line: bytes, entries: dict[str, Entry]) -> None:
    """Take what a line tells into `entries`."""
    body = read_line(line)
    if body is None:
        return
    try:
        values = orjson.loads(body)
        if values["v"] > VERSION or values["c"] is None:
            entries.pop(values["n"], None)
            return
        stat = FileStat(values["s"], values["t"])
        entries[values["n"]] = Entry(values["n"], values["j"], stat, Counters.of(values["c"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return
