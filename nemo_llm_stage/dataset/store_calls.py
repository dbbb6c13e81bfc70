"""
Which stores there are, and single calls to one where fsspec would take several.

Knows fsspec's filesystems and paths in them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from fsspec.core import has_magic

_EXTRAS = {"s3": ("s3", "s3a"), "gcs": ("gs", "gcs"), "azure": ("az", "abfs", "abfss")}
BUCKET_PROTOCOLS = {protocol for protocols in _EXTRAS.values() for protocol in protocols}

EXTRA_OF = {"hf": "hf", **{protocol: extra for extra, protocols in _EXTRAS.items() for protocol in protocols}}
"""Protocol → the extra of this package that brings what serves it."""


def read_whole(fs: Any, path: str) -> bytes:
    """
    Return the bytes of a file. As a range, which spares the library's look for the size; an empty file has none.

    Raises:
        FileNotFoundError: There is no such file.
    """
    data: bytes
    try:
        data = fs.cat_file(path, start=0)
    except FileNotFoundError:
        raise
    except Exception:  # noqa: BLE001 - a store's library may raise anything for a range that is none
        data = fs.cat_file(path)
    return data


def has_bytes(fs: Any, path: str) -> bool:
    """Whether there is a file with at least one byte."""
    try:
        return bool(fs.cat_file(path, start=0, end=1))
    except FileNotFoundError:
        return False


def remove_files(fs: Any, paths: Sequence[str]) -> None:
    """Remove files, those that exist, a thousand in one call."""
    plain = [path for path in paths if not has_magic(path)]  # others would be taken for patterns
    with contextlib.suppress(FileNotFoundError):
        if plain:
            fs.rm(plain)
    for path in set(paths) - set(plain):
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)
