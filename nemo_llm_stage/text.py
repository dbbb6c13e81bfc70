"""
Text from outside, made safe to show: no control characters, and where one line is wanted, one line.

Rows, answers, servers, file names and column names can hold escape sequences that move a terminal's cursor, set its
title or turn the order of letters around. Pure: knows nothing of terminals or errors.
"""

from __future__ import annotations

import re
from typing import overload

MAX_ERROR_CHARS = 2_000
"""Longest message of an error."""

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 without tab and line feed, DEL
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line separators and the marks that turn the direction of text
    "\ud800-\udfff]"  # half a surrogate pair, which no stream can encode
)
"""Unicode TR9 (bidirectional formatting characters); ECMA-48 (C0, C1)."""

_SECRET_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)", re.IGNORECASE)
_COLOR = re.compile("\x1b\\[[0-9;]*m")


def printable(text: str) -> str:
    r"""
    Return `text` with each character that could act on a terminal written as an escape, e.g. ``\x1b``.

    Tabs and line feeds stay; a carriage return before a line feed is dropped.
    """
    if _UNPRINTABLE.search(text) is None:
        return text
    return _UNPRINTABLE.sub(_escaped, text.replace("\r\n", "\n"))


def one_line(text: str, max_chars: int | None = None) -> str:
    """Return `text` printable, on one line, and cut at `max_chars` with an ellipsis."""
    folded = printable(" ".join(text.split()))
    return folded if max_chars is None else shorten(folded, max_chars)


def without_colors(text: str) -> str:
    """Return `text` without the sequences that set a terminal's colours."""
    return _COLOR.sub("", text)


def shorten(text: str, max_chars: int) -> str:
    """Return `text` cut at `max_chars`, with an ellipsis where something was cut."""
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"


@overload
def encodable(text: str) -> str: ...
@overload
def encodable(text: str | None) -> str | None: ...
def encodable(text: str | None) -> str | None:
    """
    Return `text` with each lone surrogate, which UTF-8 cannot encode, replaced by ``?``.

    Two halves of a pair that came one by one become the one character that they are.
    """
    if text is None or text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        return paired.encode("utf-8", "replace").decode()
    return text


def names_a_secret(name: str) -> bool:
    """Return whether a variable's name says that it holds a secret."""
    return _SECRET_NAME.search(name) is not None


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
