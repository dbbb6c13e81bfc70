"""
Bounds on what a server may send, so that no response holds up the event loop or fills the memory.

The longest body is the user's ``max_response_bytes``.
"""

from __future__ import annotations

MAX_ERROR_BYTES = 64 * 1024
"""Read of a response that is an error; the rest is left unread and the connection closed."""

MAX_HEAD_BYTES = 64 * 1024
"""Longest head, interim responses included; also the longest run of bytes after it without content (trailers)."""

MAX_HEADERS = 256
"""Most headers of a response."""

MAX_INTERIM_RESPONSES = 16
"""Most responses with a status below 200 before the final one."""

SLICE_BYTES = 4 * 1024
"""Bytes parsed in one step: half a millisecond in chunks of one byte. Most answers are one step."""

MAX_UNREAD_SLICES = 16
"""Slices that wait to be parsed before no more is read from the server."""

LINGER_S = 0.1
"""Wait for the end of a stream whose content is whole; with the end the connection can be used again."""

COMPARED_BYTES = 64 * 1024
"""Beginning of a response that is compared with those before it on the connection; the ids stand there."""
