"""
Find the one JSON value in an answer.

Takes what stands around it (prose, code fences) away and accepts what is only cosmetic within it: trailing commas,
comments, single quotes, unquoted keys, line breaks inside strings. It reads by a grammar and never completes or
guesses: an answer that was cut off, or that holds two values, is an error. The work on one answer is bounded, for it
is done on the event loop: an answer gone astray costs milliseconds, not seconds. Knows nothing of schemas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import orjson
import pyjson5

from nemo_llm_stage.errors import ParseError

# A string without an end runs to the end of the text: looking for others inside it would take quadratic time.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[{}\[\]]', re.DOTALL)
_DECODER = json.JSONDecoder(strict=False)
MAX_SEARCHED_CHARS = 1 << 19
"""Longest answer that is searched for JSON; a longer one must be JSON as it stands. About 130,000 tokens."""

MAX_REPAIRED_CHARS = 1 << 16
"""Longest value whose cosmetic faults are put right."""

MAX_SPANS = 32
"""Bracketed parts of an answer that are tried."""

MAX_TOKENS = 5_000
"""Brackets and strings that are counted where the C parser does not find a value's end."""

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_JSON_ESCAPES = frozenset("\"\\/bfnrtu'")


def find_json(text: str, openers: str) -> Any:
    """
    Return the one JSON value in `text`.

    Args:
        text: The answer.
        openers: The brackets the value may start with, out of ``{[``; none where it is a number, text or truth value,
            which must stand alone.

    Raises:
        ParseError: There is none or more than one, or it is broken in more than form.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        failure = f"the answer is not JSON: {error}"
    if len(text) > MAX_SEARCHED_CHARS:
        raise ParseError(f"{failure}, and too long to be searched for it.")
    values = []
    for num_spans, span in enumerate(_spans(text, openers) if openers else ()):
        if num_spans == MAX_SPANS:
            raise ParseError(f"the answer holds more than {MAX_SPANS} parts in brackets; exactly one is wanted.")
        try:
            values.append(_read(span))
        except ValueError as error:
            failure = f"the answer is not JSON: {error}"
    if len(values) > 1:
        raise ParseError(f"the answer holds {len(values)} JSON values; exactly one is wanted.")
    if not values:
        raise ParseError(failure)
    return values[0]


def _spans(text: str, openers: str) -> Iterator[str]:
    """
    Yield each outermost bracketed span. Never looks inside one for another, so that a part is not taken for the whole.

    Raises:
        ParseError: A bracket is not closed.
    """
    opener = re.compile(f"[{re.escape(openers)}]")
    start = opener.search(text)
    while start:
        end = _end_of(text, start.start())
        yield text[start.start() : end]
        start = opener.search(text, end)


def _end_of(text: str, start: int) -> int:
    """Return where the bracket that opens at `start` has been closed: by the C parser, else by counting brackets."""
    try:
        return _DECODER.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        pass
    depth = 0
    for num_tokens, token in enumerate(_TOKEN.finditer(text, start)):
        if num_tokens == MAX_TOKENS:
            raise ParseError("the answer is not JSON: it has too many brackets and strings to find its end.")
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token[0], 0)
        if depth == 0:
            return token.end()
    raise ParseError("the answer is not JSON: it ends before its last bracket is closed.")


def _read(span: str) -> Any:
    """
    Return the span's value.

    Raises:
        ValueError: It is no JSON, not even in a wider sense.
    """
    try:
        return orjson.loads(span)
    except orjson.JSONDecodeError as error:
        failure = error
    for read in (_DECODER.decode, _read_json5) if len(span) <= MAX_REPAIRED_CHARS else ():
        try:
            value = read(span)
            # NaN, infinity or half a surrogate pair: neither JSON nor Arrow's text has them.
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError, pyjson5.Json5Exception):
            continue
        return value
    raise failure


def _read_json5(span: str) -> Any:
    # JSON5 drops the backslash of an escape it does not know, and would turn "\alpha" into "alpha".
    if not _JSON_ESCAPES.issuperset(_ESCAPE.findall(span)):
        raise ValueError("unknown escape")
    return pyjson5.decode(span)
