"""
The line format of a journal: one answer is one line.

A line is the CRC-32 of its JSON as 8 hex digits, a space, the JSON and a newline. A reader skips a line whose checksum
does not fit: a crash or a full disk may tear a line. The JSON is one object:

=====  ==================================================================================
key    value
=====  ==================================================================================
``v``  version of this format; a line without it has version 1
``k``  request key: 32 hex digits, the hash of the request's messages and parameters
``t``  texts of the choices, a list of strings
``f``  finish reasons of the choices, a list of strings or nulls
``r``  reasoning of the choices, a list of strings or nulls
``u``  usage ``[input_tokens, output_tokens, cached_tokens]``, each may be null; or null
``m``  model as the server reports it, or null
``e``  endpoint: the server's base URL without credentials, or null
``a``  attempts: sends that the answer took
``s``  latency of the last attempt in seconds, or null
``p``  logprobs of the choices, a list of the server's objects
``x``  errors of the choices, a list of strings or nulls; only where a choice is no answer
=====  ==================================================================================

Raise `VERSION` when a reader of the version before would misread a line; a new key that it may ignore needs none.
Knows completions and bytes; knows nothing of files.
"""

from __future__ import annotations

import zlib
from typing import Any

import orjson

from nemo_llm_stage.core import Completion, Usage
from nemo_llm_stage.errors import OutputConflictError
from nemo_llm_stage.fields import (
    count_or_none,
    name_or_none,
    seconds_or_none,
    text_or_none,
    typed_completion,
    usage_or_none,
)

VERSION = 1

_CHECKSUM_CHARS = 8
_NUM_USAGE_FIELDS = 3
_USUAL_REASONS = (["stop"], ["length"])


def encode_line(key: str, completion: Completion) -> bytes:
    """
    Return the journal line of an answer, with its newline.

    A field that JSON cannot hold becomes one that it can: a client of the user's may have put anything there.
    """
    try:
        body = orjson.dumps(_entry(key, completion))
    except TypeError:
        body = orjson.dumps(_entry(key, typed_completion(completion) or Completion(texts=("",))))
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _entry(key: str, completion: Completion) -> dict[str, Any]:
    usage = completion.usage
    entry = {
        "v": VERSION,
        "k": key,
        "t": completion.texts,
        "f": completion.finish_reasons,
        "r": completion.reasoning,
        "u": None if usage is None else (usage.input_tokens, usage.output_tokens, usage.cached_tokens),
        "m": completion.model,
        "e": completion.endpoint,
        "a": completion.attempts,
        "s": completion.latency_s,
        "p": completion.logprobs,
    }
    if completion.choice_errors:
        entry["x"] = completion.choice_errors
    return entry


def read_line(line: bytes) -> bytes | None:
    """Return the JSON of a journal line without its newline, or None if the line is torn or corrupt."""
    checksum, body = line[:_CHECKSUM_CHARS], line[_CHECKSUM_CHARS + 1 :]
    try:
        return body if int(checksum, 16) == zlib.crc32(body) and body else None
    except ValueError:
        return None


def read_key(body: bytes) -> str | None:
    """
    Return the request key of a line's JSON; None if it is no journal line.

    Raises:
        OutputConflictError: A newer version of this package wrote the line.
    """
    try:
        entry = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(entry, dict):
        return None
    version, key = entry.get("v", 1), entry.get("k")
    if isinstance(version, int) and version > VERSION:
        raise OutputConflictError(
            f"a newer version of this package wrote its answers (format {version}; this one reads up to {VERSION}). "
            "Go on with that version."
        )
    return key if isinstance(key, str) else None


def decode(body: bytes) -> Completion | None:
    """
    Return the Completion of a line's JSON; None if it holds no answer.

    Lines of earlier versions hold fields as the server sent them. A field of another type than its name says is None.
    """
    entry: Any = orjson.loads(body)
    usage = entry.get("u")
    is_usage = type(usage) is list and len(usage) == _NUM_USAGE_FIELDS
    texts = entry.get("t")
    if type(texts) is list and len(texts) == 1 and type(texts[0]) is str and _is_usual(entry):
        return Completion(
            (texts[0],),
            (entry["f"][0],),
            (None,),
            usage_or_none(*usage) if is_usage else None,
            name_or_none(entry.get("m")),
            text_or_none(entry.get("e")),
            count_or_none(entry.get("a")) or 1,
            seconds_or_none(entry.get("s")),
        )
    completion = Completion(
        texts,
        entry.get("f"),
        entry.get("r"),
        Usage(*usage) if is_usage else None,
        entry.get("m"),
        entry.get("e"),
        entry.get("a"),
        entry.get("s"),
        entry.get("p"),
        choice_errors=entry.get("x", ()),
    )
    return typed_completion(completion)


def _is_usual(entry: dict[str, Any]) -> bool:
    """Whether the one choice of this entry is finished and holds nothing but its text."""
    return entry.get("f") in _USUAL_REASONS and entry.get("r") == [None] and entry.get("p") == [] and "x" not in entry
