"""
A checksum over all bytes of a committed file, so that `verify` finds a single flipped bit.

A Parquet file holds its own, in its footer's metadata under `KEY`: CRC-32 of the file with the eight digits of the
checksum taken as zeros. It is written into a place that is kept free, so the footer keeps its length. Pages have
checksums too, for other readers; only this one covers page headers, statistics and the footer. The checksum of a JSONL
file stands in its summary. Knows bytes; knows nothing of rows.

Source: the place is found by Thrift's compact protocol, in which a metadata value of 8 bytes follows its key after the
bytes 18 08 (binary field, length 8).
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

KEY = b"nemo_llm_stage:crc32"
PLACEHOLDER = b"00000000"

_MARK = KEY + b"\x18\x08"
_BLOCK_BYTES = 1 << 20
_TAIL_BYTES = 8
"""At the end of a Parquet file: the footer's length as 4 bytes, little-endian, and PAR1."""


def seal(path: Path) -> None:
    """
    Write the checksum of a Parquet file into the place that its footer has for it.

    Raises:
        OSError: The file cannot be read or written.
        ValueError: It has no such place.
    """
    with path.open("r+b") as file:
        found = _read(file)
        if found is None:
            raise ValueError(f"{path} has no place for a checksum.")
        place, _, checksum = found
        file.seek(place)
        file.write(checksum)


def is_intact(raw: Any) -> bool | None:
    """
    Return whether a Parquet file has the checksum that it says; None where it says none.

    Args:
        raw: The file, open for reading; read as a whole.

    Raises:
        OSError: It cannot be read.
    """
    found = _read(raw)
    return None if found is None else found[1] == found[2]


def checksum_of(raw: Any, start: int = 0) -> int:
    """Return the CRC-32 of a file's bytes, which is read as a whole, going on from `start`."""
    checksum = start
    while block := raw.read(_BLOCK_BYTES):
        checksum = zlib.crc32(block, checksum)
    return checksum


def _read(raw: Any) -> tuple[int, bytes, bytes] | None:
    """Return the place of the checksum, the one that is there, and the right one; None where there is no place."""
    size = raw.seek(0, 2)
    if size < _TAIL_BYTES:
        return None
    raw.seek(size - _TAIL_BYTES)
    start = size - _TAIL_BYTES - int.from_bytes(raw.read(4), "little")
    if start < 0:
        return None
    raw.seek(start)
    footer = raw.read()
    found = footer.rfind(_MARK)
    if found < 0:
        return None
    place = found + len(_MARK)
    stored = footer[place : place + len(PLACEHOLDER)]
    raw.seek(0)
    checksum, num_left = 0, start
    while num_left:
        block = raw.read(min(_BLOCK_BYTES, num_left))
        if not block:
            return None
        checksum = zlib.crc32(block, checksum)
        num_left -= len(block)
    checksum = zlib.crc32(footer[:place] + PLACEHOLDER + footer[place + len(PLACEHOLDER) :], checksum)
    return start + place, stored, b"%08x" % checksum
