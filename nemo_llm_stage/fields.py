"""
What the fields of an answer may hold: each reader returns a value of the field's type, or None for anything else.

Servers fill a field with whatever they like, and journals keep what earlier versions took from them. Knows core and the
writer of JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import orjson

from nemo_llm_stage.core import Completion, Usage
from nemo_llm_stage.text import encodable

T = TypeVar("T")

MAX_NAME_CHARS = 200
"""A longer name (of a model, of a finish reason) is cut."""

MAX_COUNT = 1 << 53
"""Counts end below it: from here on a JSON number may stand for another one. Source: RFC 8259 §6."""


def text_or_none(value: Any) -> str | None:
    """Return a text that UTF-8 can encode."""
    return encodable(value) if isinstance(value, str) else None


def name_or_none(value: Any) -> str | None:
    """Return a name of 1 to `MAX_NAME_CHARS` characters."""
    if not isinstance(value, str) or not value:
        return None
    return value if len(value) <= MAX_NAME_CHARS and value.isascii() else encodable(value[:MAX_NAME_CHARS])


def count_or_none(value: Any) -> int | None:
    """Return a count from 0 to below `MAX_COUNT`; a float that is a whole number is one, a bool is none."""
    if type(value) is int:
        return value if 0 <= value < MAX_COUNT else None
    return int(value) if type(value) is float and value.is_integer() and 0 <= value < MAX_COUNT else None


def seconds_or_none(value: Any) -> float | None:
    """Return finite seconds, 0 or more."""
    is_number = type(value) is float or type(value) is int
    return value if is_number and 0 <= value < MAX_COUNT else None  # NaN is neither


def object_or_none(value: Any) -> dict[str, Any] | None:
    """Return a JSON object that can be written again: not too deep, all its texts encodable."""
    if not isinstance(value, dict):
        return None
    try:
        orjson.dumps(value)
    except TypeError:
        return None
    return value


def usage_or_none(input_tokens: Any, output_tokens: Any, cached_tokens: Any) -> Usage | None:
    """Return the counts that are counts; None where none of them is."""
    if type(input_tokens) is type(output_tokens) is type(cached_tokens) is int and (
        0 <= input_tokens < MAX_COUNT and 0 <= output_tokens < MAX_COUNT and 0 <= cached_tokens < MAX_COUNT
    ):
        return Usage(input_tokens, output_tokens, cached_tokens)  # the usual answer, at the cost of no call
    inputs, outputs = count_or_none(input_tokens), count_or_none(output_tokens)
    cached = None if cached_tokens is None else count_or_none(cached_tokens)
    return None if inputs is None and outputs is None and cached is None else Usage(inputs, outputs, cached)


def texts_or_none(value: Any) -> tuple[str, ...] | None:
    """Return the texts of a list that has one and holds nothing else."""
    if (type(value) is not list and type(value) is not tuple) or not value:
        return None
    for text in value:
        if not isinstance(text, str):
            return None
    return tuple(map(encodable, value))


def typed_completion(completion: Completion) -> Completion | None:
    """
    Return `completion` with every field of its type; None where its texts are no texts.

    Args:
        completion: As a journal or a client of the user's has it.
    """
    texts = texts_or_none(completion.texts)
    if texts is None:
        return None
    num, usage = len(texts), completion.usage
    return Completion(
        texts=texts,
        finish_reasons=_per_choice(completion.finish_reasons, num, name_or_none),
        reasoning=_per_choice(completion.reasoning, num, text_or_none),
        usage=usage_or_none(usage.input_tokens, usage.output_tokens, usage.cached_tokens) if usage else None,
        model=name_or_none(completion.model),
        endpoint=text_or_none(completion.endpoint),
        attempts=count_or_none(completion.attempts) or 1,
        latency_s=seconds_or_none(completion.latency_s),
        logprobs=_per_choice(completion.logprobs, num, object_or_none),
        choice_errors=_per_choice(completion.choice_errors, num, text_or_none),
    )


def _per_choice(values: Any, num_choices: int, read: Callable[[Any], T]) -> tuple[T, ...]:
    """One value for each choice, or none where there are not as many."""
    if type(values) is not list and type(values) is not tuple:
        return ()
    return tuple(map(read, values)) if len(values) == num_choices else ()
