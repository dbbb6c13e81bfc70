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

VERSION = 1

_CHECKSUM_CHARS = 8


def encode_line(key: str, completion: Completion) -> bytes:
    """Return the journal line of an answer, with its newline."""
    usage = completion.usage
    body = orjson.dumps(
        {
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
    )
    return b"%08x %b\n" % (zlib.crc32(body), body)


def read_line(line: bytes) -> bytes | None:
    """Return the JSON of a journal line without its newline, or None if the line is torn or corrupt."""
    checksum, body = line[:_CHECKSUM_CHARS], line[_CHECKSUM_CHARS + 1 :]
    try:
        return body if int(checksum, 16) == zlib.crc32(body) and body else None
    except ValueError:
        return None


def read_key(body: bytes) -> str:
    """
    Return the request key of a line's JSON.

    Raises:
        OutputConflictError: A newer version of this package wrote the line.
    """
    entry = orjson.loads(body)
    version = entry.get("v", 1)
    if version > VERSION:
        raise OutputConflictError(
            f"a newer version of this package wrote its answers (format {version}; this one reads up to {VERSION}). "
            "Go on with that version."
        )
    key: str = entry["k"]
    return key


def decode(body: bytes) -> Completion:
    """Return the Completion of a line's JSON."""
    entry: dict[str, Any] = orjson.loads(body)
    return Completion(
        texts=tuple(entry["t"]),
        finish_reasons=tuple(entry["f"]),
        reasoning=tuple(entry["r"]),
        usage=None if entry["u"] is None else Usage(*entry["u"]),
        model=entry["m"],
        endpoint=entry["e"],
        attempts=entry["a"],
        latency_s=entry["s"],
        logprobs=tuple(entry["p"]),
    )
