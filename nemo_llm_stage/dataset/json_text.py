"""
JSON as the world writes it: strict, or with what Python's ``json`` adds to it.

orjson reads almost all; the rest (NaN, infinities, integers of more than 64 bits, half a surrogate pair) takes Python's
own parser. Pure.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

import orjson

_DIGITS = bytes(ord("0") if byte in b"0123456789" else byte if byte == ord("-") else ord(" ") for byte in range(256))
_NUM_DIGITS = 20
"""Integers of fewer digits have at most 64 bits; with a sign, those of two fewer."""

_BEYOND_64_BITS = re.compile(rb"(?<![0-9.])[0-9]{%d}|-[0-9]{%d}" % (_NUM_DIGITS, _NUM_DIGITS - 1))
_LONG, _LONG_NEGATIVE = b"0" * _NUM_DIGITS, b"-" + b"0" * (_NUM_DIGITS - 1)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SPACE = " \t\r\n"
_ARRAY_OF_ROWS = re.compile(rb"\[\s*\{")

BOM = b"\xef\xbb\xbf"
"""What a text in UTF-8 may begin with."""

HEAD_BYTES = 1 << 20
"""Of a text, what tells whether it has a row on each line."""


def parse(text: bytes, *, is_exact: bool = False) -> Any:
    """
    Return the value of a JSON text; half a surrogate pair, which UTF-8 cannot hold, becomes U+FFFD.

    Args:
        text: One JSON value.
        is_exact: Whether integers of more than 64 bits are kept; else they may become floats.

    Raises:
        ValueError: It is no JSON, also not as Python writes it; the message says where.
    """
    if not is_exact or not has_long_numbers(text):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
    try:
        value = json.loads(text.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return _without_surrogates(value) if _SURROGATE_ESCAPE.search(text) else value


def dump(value: Any) -> str:
    """Return a value from `parse` as compact JSON, with every digit."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def has_long_numbers(text: bytes) -> bool:
    """Whether `text` may hold integers of more than 64 bits; also where the digits are within a string."""
    shape = text.translate(_DIGITS)
    if _LONG_NEGATIVE[1:] not in shape:  # one search, where most texts end
        return False
    return (_LONG in shape or _LONG_NEGATIVE in shape) and _BEYOND_64_BITS.search(text) is not None


def fields_before(line: bytes, name: str) -> bytes:
    """
    Return the JSON object `line` with only the fields that stand before the field `name`, byte for byte.

    Raises:
        ValueError: It is no JSON object, or has no such field.
    """
    text = line.decode()
    decoder = json.JSONDecoder()
    place = _skip_space(text, text.index("{") + 1)
    end = place
    while text[place] == '"':
        key, place = scanstring(text, place + 1)
        if key == name:
            return (text[:end] + "}").encode()
        place = _skip_space(text, text.index(":", place) + 1)
        _, place = decoder.raw_decode(text, place)
        end = place
        place = _skip_space(text, place)
        if text[place] == ",":
            place = _skip_space(text, place + 1)
    raise ValueError(f"there is no field {name!r}")


def is_row(line: bytes) -> bool:
    """Whether a file's first line is a row."""
    with contextlib.suppress(ValueError):
        return isinstance(parse(line.removeprefix(BOM)), dict)
    return False


def is_document(head: bytes, *, is_likely: bool) -> bool:
    """
    Whether JSON text is to be read whole, as its first row goes over several lines, shares one, or is in an array.

    Args:
        head: What it begins with, the first line included; all of it, or at least `HEAD_BYTES`.
        is_likely: The answer for an array of anything, and for a row that breaks off in the first line.
    """
    is_cut = len(head) >= HEAD_BYTES
    head = head.removeprefix(BOM).lstrip()
    if head.startswith(b"["):
        return is_likely or _ARRAY_OF_ROWS.match(head) is not None
    first, _, rest = head.partition(b"\n")
    with contextlib.suppress(ValueError):
        parse(first)
        return False
    whole_lines = head[: head.rfind(b"\n") + 1] if is_cut else b""  # no number or name is cut
    text = (whole_lines or head).decode("utf-8", "replace").rstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:  # at its end it goes on; elsewhere the first line is broken
        goes_on = error.pos >= len(text) or error.msg.startswith("Unterminated string")
        return goes_on and (is_likely or bool(rest.strip()))
    except RecursionError:
        return False
    return text[end:].lstrip()[:1] in ("", "{")


def values(text: bytes) -> Iterator[tuple[int, bytes]]:
    """
    Yield (offset, value) for each value of JSON text: the elements of its array, or one value after the other.

    Raises:
        json.JSONDecodeError: It is no JSON; says where.
        UnicodeDecodeError: It is no UTF-8.
    """
    decoder = json.JSONDecoder()
    shown = text.decode("utf-8-sig")
    place = _skip_space(shown, 0)
    is_array = shown[place : place + 1] == "["
    place = _skip_space(shown, place + 1) if is_array else place
    num_bytes, counted = len(text) - len(shown.encode()), 0
    while place < len(shown) and not (is_array and shown[place] == "]"):
        _, end = decoder.raw_decode(shown, place)
        num_bytes += len(shown[counted:place].encode())
        counted = place
        yield num_bytes, shown[place:end].replace("\n", " ").replace("\r", " ").encode()
        place = _skip_space(shown, end)
        if is_array and shown[place : place + 1] == ",":
            place = _skip_space(shown, place + 1)
        elif is_array and shown[place : place + 1] != "]":
            raise json.JSONDecodeError("a JSON array is not closed, or has no comma", shown, place)
    if is_array and (after := _skip_space(shown, place + 1)) < len(shown):
        raise json.JSONDecodeError("there is more after the JSON array", shown, after)
    if is_array and place >= len(shown):
        raise json.JSONDecodeError("a JSON array is not closed", shown, place)


def _skip_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in _SPACE:
        place += 1
    return place


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value
