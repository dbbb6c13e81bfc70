"""
The words of an error body: out of JSON of any shape, out of a page of HTML, short enough to be shown.

The time taken is linear and small, whatever the text holds. Pure.
"""

from __future__ import annotations

import re
from typing import Any

from nemo_llm_stage.text import one_line

MAX_MESSAGE_CHARS = 500
"""Longest text of a server that goes into an error."""

MAX_WORDS_CHARS = 8_000
"""Longest text that patterns are matched against: half of it from the start, half from the end."""

_MAX_DEPTH = 8
"""How deep the words may be nested in a JSON body."""

_HTML = re.compile(r"<(?:!doctype|html|head|body|title)", re.IGNORECASE)
_TAG_WITH_TEXT = re.compile(r"<(script|style|title)\b", re.IGNORECASE)
_CLOSING_TAGS = {name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style", "title")}


def shorten(text: str, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """Return `text` on one line, without control characters, cut at `max_chars`."""
    return one_line(cut(text), max_chars)


def cut(text: str) -> str:
    """Return the start and the end of a long text."""
    half = MAX_WORDS_CHARS // 2
    return text if len(text) <= MAX_WORDS_CHARS else f"{text[:half]} … {text[-half:]}"


def message_in(value: Any, depth: int = 0) -> str:
    """Return the words in a JSON error body, whichever key they are under."""
    if isinstance(value, str):
        return value
    if depth == _MAX_DEPTH:
        return ""
    if isinstance(value, list):
        return "; ".join(text for text in (message_in(item, depth + 1) for item in value[:3]) if text)
    if not isinstance(value, dict):
        return ""
    if isinstance(value.get("msg"), str) and isinstance(value.get("loc"), list):  # FastAPI's list of mistakes
        names = (str(name) for name in value["loc"][:_MAX_DEPTH] if isinstance(name, str | int))
        return f"{'.'.join(names)}: {value['msg']}"
    for key in ("message", "error", "detail", "msg", "errors", "error_message"):
        text = message_in(value.get(key), depth + 1)
        if text:
            return text
    return ""


def plain_text(text: str) -> str:
    """Return the title of an HTML page, or else its text; other texts as they are."""
    if _HTML.search(text) is None:
        return text
    title, rest = _title_and_text(text)
    return title if title.strip() else rest


def _title_and_text(page: str) -> tuple[str, str]:
    """Return a page's first title, and its text without tags, scripts and styles, in one pass."""
    title, parts, at = "", [], 0
    while (start := page.find("<", at)) >= 0 and (end := page.find(">", start)) >= 0:
        parts.append(page[at:start])
        at = end + 1
        tag = _TAG_WITH_TEXT.match(page, start)
        if tag is not None:
            name = tag[1].lower()
            closing = _CLOSING_TAGS[name].search(page, at)
            if closing is None:
                break
            title = title or (page[at : closing.start()] if name == "title" else "")
            at = closing.start()
    parts.append(page[at:])
    return title, " ".join(parts)
