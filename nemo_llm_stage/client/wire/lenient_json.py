"""
JSON as servers write it, and short words for what they sent instead.

Python servers write NaN and halves of surrogate pairs, which JSON does not have; one of them in a side field must not
cost the answer.
"""

from __future__ import annotations

import gc
import json
import math
import reprlib
from typing import Any

import orjson

from nemo_llm_stage.client.errors.refusal import read_refusal
from nemo_llm_stage.client.errors.words import shorten
from nemo_llm_stage.errors import InvalidResponseError

MAX_LENIENT_BYTES = 1 << 19
"""Most that is read by the lenient reader, which takes some 20 ms for it and holds up the event loop so long."""

MAX_VALUES = 150_000
"""Most values of one JSON text, counted by its commas and brackets, in texts too: reading more would hold up the event
loop for over 50 ms. A list of 70,000 digits, each of them a token, has fewer. Log probabilities may have more."""

MAX_BYTES = 16 << 20
"""Longest JSON text, for the same reason and but for log probabilities."""

LARGE_BYTES = 1 << 17
"""A smaller text is read without a look at its size. While a larger one is read the garbage collector waits: it would
go through all that is new again and again."""

BOM = b"\xef\xbb\xbf"
_MAX_SAID_BYTES = 4096
_MAX_INT_DIGITS = 18
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def load_json(body: bytes, *, is_bounded: bool = True) -> Any:
    """
    Return the value of a JSON text.

    Texts in it may hold lone surrogates; bytes that are no UTF-8 become U+FFFD, NaN and infinity become None.

    Args:
        body: The text.
        is_bounded: Whether `MAX_VALUES` and `MAX_BYTES` hold.

    Raises:
        ValueError: It is not JSON.
        InvalidResponseError: It is too much to be read at once.
    """
    if len(body) < LARGE_BYTES:
        return _load(body)
    if is_bounded:
        _check_size(body)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _load(body)
    finally:
        if was_enabled:
            gc.enable()


def _check_size(body: bytes) -> None:
    if len(body) > MAX_BYTES:
        raise InvalidResponseError(f"The answer is longer than {MAX_BYTES} bytes: {shown(body[:80])}.")
    num_values = 0
    for start in range(0, len(body), LARGE_BYTES):
        piece = body[start : start + LARGE_BYTES]
        num_values += piece.count(b",") + piece.count(b"[") + piece.count(b"{")
        if num_values > MAX_VALUES:
            raise InvalidResponseError(f"The answer holds more than {MAX_VALUES} values: {shown(body[:80])}.")


def _load(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if len(body) > MAX_LENIENT_BYTES:
            raise
        text = body.removeprefix(BOM).decode("utf-8", "replace")
        try:
            return json.loads(text, parse_constant=_nothing, parse_int=_number, parse_float=_finite)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None


def _nothing(_: str) -> None:
    return None


def _number(digits: str) -> float | int | None:
    return int(digits) if len(digits) <= _MAX_INT_DIGITS else _finite(digits)


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def load_object(body: bytes, *, is_bounded: bool = True) -> dict[str, Any]:
    """
    Return the JSON object in the body of an answer.

    Args:
        body: JSON.
        is_bounded: See `load_json`.

    Raises:
        InvalidResponseError: It is not one, or is too much to be read at once.
    """
    try:
        answer = load_json(body, is_bounded=is_bounded)
    except ValueError:
        said = read_refusal(body[:_MAX_SAID_BYTES]).text
        raise InvalidResponseError(f"The answer is not JSON: {shorten(said, 120)!r}.") from None
    if not isinstance(answer, dict):
        raise InvalidResponseError(f"The answer is not a JSON object: {shown(answer)}.")
    return answer


def shown(value: Any) -> str:
    """Return short words for `value`, whatever its size and depth."""
    return shorten(_SHORT.repr(value), 120)
