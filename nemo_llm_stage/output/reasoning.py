"""Tell a reasoning model's thinking from its answer, where the server left both in one text."""

from __future__ import annotations

_OPEN, _CLOSE = "<think>", "</think>"


def split_reasoning(text: str) -> tuple[str | None, str]:
    """
    Return the thinking (None where there is none) and the answer.

    The opening tag may be missing: chat templates of reasoning models often end with it, so that it is part of the
    prompt. Where the closing tag is missing the answer was cut off, and the answer is empty.
    """
    thinking, close, answer = text.partition(_CLOSE)
    starts_open = thinking.lstrip().startswith(_OPEN)
    if not close and not starts_open:
        return None, text
    if starts_open:
        thinking = thinking.lstrip().removeprefix(_OPEN)
    return thinking.strip() or None, answer.lstrip()
