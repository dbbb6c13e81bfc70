"""The messages that ask again after an answer that could not be parsed."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_llm_stage.core import Message
from nemo_llm_stage.errors import ParseError

MAX_ANSWER_CHARS = 8_000
"""Most of a failed answer that is shown back; an answer gone astray may be as long as the model's limit."""


def reask_messages(messages: Sequence[Message], answer: str, error: ParseError) -> list[Message]:
    """
    Return `messages` with the failed answer and what is wrong with it; does not modify them.

    Args:
        messages: What was asked.
        answer: The model's text.
        error: Why it could not be parsed.
    """
    correction = f"Your answer cannot be used: {error}\nSend the whole corrected answer and nothing else."
    turns = [{"role": "assistant", "content": answer[:MAX_ANSWER_CHARS]}, {"role": "user", "content": correction}]
    return [*messages, *turns]
