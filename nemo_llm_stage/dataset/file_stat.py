"""
What a listing tells of files, on local disks and in object stores.

Knows names, sizes and versions; opens no file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class FileStat:
    """
    What a listing tells of a file.

    Attributes:
        size: In bytes.
        version: Changes when the file is replaced; None where that is not known.
    """

    size: int
    version: str | None = None


def local_stat(path: Path | os.DirEntry[str]) -> FileStat:
    """
    Return the stat of a file on a local disk.

    Raises:
        OSError: It cannot be looked at.
    """
    found = path.stat()
    return FileStat(found.st_size, str(found.st_mtime_ns))


def local_names(folder: str) -> set[str]:
    """Return the names of the files in a local folder; empty if there is no such folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file()}
    return set()


def local_stats(folder: str) -> dict[str, FileStat]:
    """Return the files in a local folder by name; empty if there is no such folder."""
    stats: dict[str, FileStat] = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # it has just been removed
                if entry.is_file():
                    stats[entry.name] = local_stat(entry)
    return stats


def stats_in(listing: Iterable[Mapping[str, Any]]) -> dict[str, FileStat]:
    """Return the files of one folder by name, as fsspec lists it."""
    return {
        entry["name"].rsplit("/", 1)[-1]: FileStat(int(entry["size"]), _version_in(entry))
        for entry in listing
        if entry["type"] == "file"
    }


def _version_in(entry: Mapping[str, Any]) -> str | None:
    version = entry.get("ETag") or entry.get("etag")
    return None if version is None else str(version)
