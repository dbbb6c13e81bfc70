"""
JSON as servers write it, and short words for what they sent instead.

Python servers write NaN and halves of surrogate pairs, which JSON does not have; one of them in a side field must not
cost the answer.
"""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any

import orjson

from nemo_llm_stage.client.errors.refusal import read_refusal
from nemo_llm_stage.client.errors.words import shorten
from nemo_llm_stage.errors import InvalidResponseError

MAX_LENIENT_BYTES = 1 << 20
"""Most that is read by the lenient reader, which takes some 20 ms for it and holds up the event loop so long."""

BOM = b"\xef\xbb\xbf"
_MAX_SAID_BYTES = 4096
_MAX_INT_DIGITS = 18
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def load_json(body: bytes) -> Any:
    """
    Return the value of a JSON text.

    Texts in it may hold lone surrogates; bytes that are no UTF-8 become U+FFFD, NaN and infinity become None.

    Raises:
        ValueError: It is not JSON.
    """
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


def load_object(body: bytes) -> dict[str, Any]:
    """
    Return the JSON object in the body of an answer.

    Raises:
        InvalidResponseError: It is not one.
    """
    try:
        answer = load_json(body)
    except ValueError:
        said = read_refusal(body[:_MAX_SAID_BYTES]).text
        raise InvalidResponseError(f"The answer is not JSON: {shorten(said, 120)!r}.") from None
    if not isinstance(answer, dict):
        raise InvalidResponseError(f"The answer is not a JSON object: {shown(answer)}.")
    return answer


def shown(value: Any) -> str:
    """Return short words for `value`, whatever its size and depth."""
    return shorten(_SHORT.repr(value), 120)
