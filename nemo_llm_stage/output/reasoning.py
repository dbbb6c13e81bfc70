"""Tell a reasoning model's thinking from its answer, where the server left both in one text."""

from __future__ import annotations

from nemo_llm_stage.core import Completion

_OPEN, _CLOSE = "<think>", "</think>"


def split_reasoning(text: str) -> tuple[str | None, str]:
    """
    Return the thinking (None where there is none) and the answer.

    Thinking stands at the beginning: ``<think>…</think>``. Without the closing tag it was cut off, and the answer is
    empty. The opening tag may be missing, since chat templates of reasoning models often end with it. Then everything
    before the closing tag is thinking, unless ``<think>`` stands in it or the tag is quoted: inside double quotes, as
    within a JSON text, or right after a backtick.
    """
    if _CLOSE not in text and _OPEN not in text:
        return None, text
    start = text.lstrip()
    if start.startswith(_OPEN):
        thinking, _, answer = start.removeprefix(_OPEN).partition(_CLOSE)
        return thinking.strip() or None, answer.lstrip()
    place = _unopened_close(text)
    if place is None:
        return None, text
    return text[:place].strip() or None, text[place + len(_CLOSE) :].lstrip()


def without_reasoning(text: str, completion: Completion, choice: int) -> str:
    """
    Return the answer in `text`, without the thinking before it.

    Args:
        text: The answer's text, or a part of it.
        completion: Where it comes from. Where its server told the thinking apart, `text` is the answer as it is.
        choice: Its index in the completion, from 0.
    """
    if choice < len(completion.reasoning) and completion.reasoning[choice] is not None:
        return text
    return split_reasoning(text)[1]


def _unopened_close(text: str) -> int | None:
    """Where the closing tag begins whose opening tag was part of the prompt; None where there is none."""
    opened_at, place = text.find(_OPEN), text.find(_CLOSE)
    seen = num_quotes = 0  # of the line so far: the time stays linear, however many tags a line has
    while place >= 0 and not 0 <= opened_at < place:
        line_start = text.rfind("\n", seen, place) + 1
        if line_start:
            seen, num_quotes = line_start, 0
        num_quotes += text.count('"', seen, place) - text.count('\\"', seen, place)
        if num_quotes % 2 == 0 and not text.endswith("`", seen, place):
            return place
        seen, place = place, text.find(_CLOSE, place + 1)
    return None
