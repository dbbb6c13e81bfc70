"""
The body of a response that is not simply kept: decompressed in small steps, or handed on as an event stream.

Knows nothing of HTTP's framing; `reader` takes that off and watches the limits.
"""

from __future__ import annotations

import zlib

from nemo_llm_stage.client.http.inflate import Inflater
from nemo_llm_stage.client.http.transport import OnEventBytes


class Body:
    """
    A body growing.

    Args:
        inflater: Decompresses it; None where it is not compressed.
        on_event_bytes: Takes its pieces; None keeps them.

    Attributes:
        num_bytes: Decompressed bytes so far.
        checksum: CRC-32 of what was handed on.
        is_whole: `on_event_bytes` has said that the content is whole.
    """

    __slots__ = ("_inflater", "_kept", "_on_event_bytes", "checksum", "is_whole", "num_bytes")

    def __init__(self, inflater: Inflater | None, on_event_bytes: OnEventBytes | None) -> None:
        self._inflater = inflater
        self._on_event_bytes = on_event_bytes
        self._kept: bytes | bytearray = b""
        self.checksum = 0
        self.num_bytes = 0
        self.is_whole = False

    @property
    def has_input(self) -> bool:
        """Whether `step` has more to do."""
        return self._inflater is not None and self._inflater.has_input

    @property
    def is_cut(self) -> bool:
        """Whether its compressed form has begun and not ended."""
        return self._inflater is not None and self._inflater.is_cut and not self.is_whole

    @property
    def content(self) -> bytes:
        """What has been kept."""
        return bytes(self._kept)

    def put(self, piece: bytes) -> None:
        """
        Take the next piece, as sent.

        Raises:
            zlib.error: It cannot be decompressed.
            Exception: What `on_event_bytes` raised.
        """
        if self._inflater is None:
            self._take(piece)
        else:
            self._inflater.put(piece)
            self.step()

    def step(self) -> None:
        """Decompress a little more of what has been put in. Raises as `put`."""
        if self._inflater is not None and self._inflater.has_input:
            self._take(self._inflater.step())

    def _take(self, piece: bytes) -> None:
        self.num_bytes += len(piece)
        if self._on_event_bytes is not None:
            self.checksum = zlib.crc32(piece, self.checksum)
            self.is_whole = self._on_event_bytes(piece) or self.is_whole
        else:
            self._kept = piece if not self._kept else appended(self._kept, piece)


def appended(kept: bytes | bytearray, piece: bytes) -> bytearray:
    """Return `kept` with `piece` behind it; a bytearray grows in place."""
    if isinstance(kept, bytes):
        kept = bytearray(kept)
    kept += piece
    return kept
