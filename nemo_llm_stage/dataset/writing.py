"""
Writing to disks: on the disk once the call returns, and a plain message where it fails.

Knows bytes and paths.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from nemo_llm_stage.errors import RunError


@contextlib.contextmanager
def writing_to(url: str) -> Iterator[None]:
    """
    Turn an OSError of the block into a RunError that says what to do.

    Raises:
        RunError: The disk is full, or access was taken away.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(url, error) from error


def unwritable(url: str, error: OSError) -> RunError:
    """Return the error for a failed write to `url`."""
    return RunError(
        f"cannot write {url}: {error.strerror or error}. Free space or restore access, and run the same command again: "
        "it goes on from here."
    )


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` to a new file, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the folder's entries are on the disk: before that, a crash may undo a rename or a link."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:  # some network filesystems do not take fsync of a folder
        pass
    finally:
        os.close(fd)
