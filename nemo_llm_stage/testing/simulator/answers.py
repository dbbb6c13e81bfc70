"""
What the simulated model says: the same text for the same prompt, always.

A token is 4 characters of text. Knows nothing of HTTP and nothing of time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from statistics import NormalDist
from typing import Any

from nemo_llm_stage.core import Message

CHARS_PER_TOKEN = 4
"""About what English text takes with the tokenizers of 2024 to 2026."""

_ECHO_CHARS = 40
_FILLER = " and so on"
_NORMAL = NormalDist()


def expected_answer(messages: Sequence[Message] | str, *, choice: int = 0) -> str:
    """
    Return the text that the simulated server answers `messages` with, unless its settings or faults say otherwise.

    It holds a hash of the whole prompt and the end of its last turn, so that it fits no other row. With `answer_tokens`
    set, the server's answer starts with it.

    Args:
        messages: Chat turns, or the prompt text of `/v1/completions`.
        choice: Which of the n choices, from 0.
    """
    return answer_to(render_prompt(messages), choice)


def answer_to(prompt: str, choice: int = 0) -> str:
    """Return `expected_answer` for a prompt that is rendered already."""
    suffix = f" #{choice}" if choice else ""
    return f"[{digest_of(prompt)}{suffix}] {' '.join(prompt[-_ECHO_CHARS:].split())}"


def render_prompt(messages: Sequence[Message] | str | Sequence[int]) -> str:
    """Return one text for chat turns, a prompt or token ids; equal for equal prompts whatever their JSON looks like."""
    if isinstance(messages, str):
        return messages
    return "\n".join(
        [f"{turn.get('role')}: {_text_of(turn)}" if isinstance(turn, dict) else str(turn) for turn in messages]
    )


def _text_of(turn: Message) -> str:
    content: Any = turn.get("content")
    if isinstance(content, str):
        return content
    parts = content or []
    return " ".join(str(part.get("text") or part) if isinstance(part, dict) else str(part) for part in parts)


def digest_of(prompt: str) -> str:
    """Return 12 hexadecimal characters that stand for `prompt`."""
    return blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def num_tokens_of(text: str) -> int:
    """Return how many tokens `text` is."""
    return -(-len(text) // CHARS_PER_TOKEN)


def tokens_of(text: str) -> list[str]:
    """Return `text` cut into its tokens."""
    return [text[start : start + CHARS_PER_TOKEN] for start in range(0, len(text), CHARS_PER_TOKEN)]


def fill_up(text: str, num_tokens: int) -> str:
    """Return `text` padded with filler words to `num_tokens`; longer texts stay as they are."""
    missing = num_tokens * CHARS_PER_TOKEN - len(text)
    if missing <= 0:
        return text
    return text + (_FILLER * (missing // len(_FILLER) + 1))[:missing]


def cut_off(text: str, *, stop: Sequence[str], max_tokens: int) -> tuple[str, str]:
    """Return `text` up to the first of the `stop` texts or `max_tokens`, and why it ends: "stop" or "length"."""
    for word in stop:
        text = text.partition(word)[0] if word else text
    if len(text) > max_tokens * CHARS_PER_TOKEN:
        return text[: max_tokens * CHARS_PER_TOKEN], "length"
    return text, "stop"


def uniform(seed: int, *parts: object) -> float:
    """Return a number in (0, 1) that depends on the arguments alone."""
    raw = blake2b(repr((seed, parts)).encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return (int.from_bytes(raw, "big") + 0.5) / 2**48


def lognormal(median: float, sigma: float, quantile: float) -> float:
    """Return the value of a lognormal distribution at `quantile`: ``median · exp(sigma · Φ⁻¹(quantile))``."""
    return median * math.exp(sigma * _NORMAL.inv_cdf(quantile))
