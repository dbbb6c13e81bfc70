"""
Decompression in small steps: neither a bomb nor a drip can hold up the event loop or fill the memory.

Knows gzip and zlib; the caller counts what comes out.
"""

from __future__ import annotations

import zlib

STEP_BYTES = 32 * 1024
"""Most bytes that one step returns."""

_GZIP_OR_ZLIB = 47
"""zlib's ``wbits`` for "find out which of the two it is"."""


class Inflater:
    """
    One compressed body. What follows its end is left out, as browsers do.

    Attributes:
        has_input: Whether `step` has more to return.
    """

    __slots__ = ("_has_begun", "_input", "_zlib", "has_input")

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._input = b""
        self._has_begun = False
        self.has_input = False

    @property
    def is_cut(self) -> bool:
        """Whether the body has begun and not ended."""
        return self._has_begun and not self._zlib.eof

    def put(self, compressed: bytes) -> None:
        """Take more input."""
        if self._zlib.eof:
            return
        self._has_begun = True
        self._input = self._input + compressed if self._input else compressed
        self.has_input = True

    def step(self) -> bytes:
        """
        Return the next bytes, at most `STEP_BYTES`.

        Raises:
            zlib.error: The input is not compressed in this way.
        """
        self.has_input = False
        piece = self._zlib.decompress(self._input, STEP_BYTES)
        self._input = b"" if self._zlib.eof else self._zlib.unconsumed_tail
        # A full step may leave output inside zlib without any input left over.
        self.has_input = not self._zlib.eof and (bool(self._input) or len(piece) == STEP_BYTES)
        return piece
