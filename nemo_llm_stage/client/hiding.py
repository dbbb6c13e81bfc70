"""
Secrets are taken out of everything that leaves a client: answers, errors and what lies behind an error.

A server, a proxy or a model may repeat what it was sent, in any field and in several notations. Knows the notations;
knows nothing of where the secrets come from.
"""

from __future__ import annotations

import base64
import binascii
import html
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote, quote_plus

import orjson

from nemo_llm_stage.client.secret import HIDDEN
from nemo_llm_stage.core import Completion
from nemo_llm_stage.text import MAX_ERROR_CHARS, one_line

MIN_CHARS = 6
"""Shorter values are not hidden: they would blank ordinary words."""

MIN_CHARS_IN_ANSWERS = 16
"""In an answer's text, which is data, only values of this length with a digit and a letter are hidden: real keys."""

_PLACEHOLDERS = frozenset(
    {"EMPTY", "empty", "none", "dummy", "ollama", "lm-studio", "no-key", "no-key-required", "not-needed", "not-used"}
    | {"sk-no-key-required", "token-abc123", "local", "test-key", "api-key", "api_key", "bearer", "basic", "token"}
)
"""What people write where a server wants a key and checks none: no secrets, and words that answers may hold."""

_CUT = "…"


class Secrets:
    """
    Texts that must not show, in the notations that servers use.

    Iterating gives every notation of each.

    Args:
        values: Keys, values of headers and query parameters, passwords. Of ``Bearer KEY`` and ``Basic BASE64`` the
            parts count too.
    """

    __slots__ = ("_in_answers", "_values", "_written")

    def __init__(self, values: Iterable[str] = ()) -> None:
        parts = {part for value in values for part in _parts_of(value)}
        self._values = frozenset(part for part in parts if len(part) >= MIN_CHARS and part not in _PLACEHOLDERS)
        self._written = _notations(self._values)
        self._in_answers = _notations(value for value in self._values if _is_key(value))

    def __iter__(self) -> Iterator[str]:
        return iter(self._written)

    def __repr__(self) -> str:
        return f"Secrets({len(self._values)} values)"

    def plus(self, others: Secrets | Iterable[str]) -> Secrets:
        """Return these and the others together."""
        values = others._values if isinstance(others, Secrets) else others  # noqa: SLF001 - of this very class
        return Secrets([*self._values, *values])

    def hide(self, text: str) -> str:
        """Return `text` with every secret blanked out, and what an ellipsis has left of one."""
        for secret in self._written:
            if secret in text:
                text = text.replace(secret, HIDDEN)
        return self._hide_cut(text) if _CUT in text else text

    def in_error(self, text: str) -> str:
        """Return the text of an error as it may be shown: without secrets and control characters, on one line, cut."""
        return one_line(self.hide(text), MAX_ERROR_CHARS)

    def clean(self, error: BaseException) -> None:
        """Take the secrets out of `error` and of the errors behind it, in their places."""
        seen: set[int] = set()
        rest: list[BaseException | None] = [error]
        while rest:
            each = rest.pop()
            if each is None or id(each) in seen:
                continue
            seen.add(id(each))
            each.args = tuple(self.in_error(arg) if isinstance(arg, str) else arg for arg in each.args)
            if isinstance(getattr(each, "message", None), str):  # the openai SDK's errors
                each.message = self.in_error(each.message)  # type: ignore[attr-defined]
            if isinstance(getattr(each, "body", None), str | list | dict):
                each.body = _changed(each.body, self.hide)  # type: ignore[attr-defined]
            rest += [each.__cause__, each.__context__]

    def cleaned(self, completion: Completion) -> Completion:
        """Return `completion` without the secrets that its server has repeated."""
        if not self._written:
            return completion
        is_repeated = _is_one_in(self._in_answers, (*completion.texts, *completion.reasoning))
        is_beside = _is_one_in(self._written, (completion.model, *completion.finish_reasons, *completion.choice_errors))
        if not is_repeated and not is_beside and not completion.logprobs:
            return completion
        return replace(
            completion,
            texts=tuple(self._hidden_in_answer(text) for text in completion.texts),
            reasoning=tuple(None if text is None else self._hidden_in_answer(text) for text in completion.reasoning),
            finish_reasons=tuple(None if reason is None else self.hide(reason) for reason in completion.finish_reasons),
            choice_errors=tuple(None if error is None else self.hide(error) for error in completion.choice_errors),
            model=None if completion.model is None else self.hide(completion.model),
            # A repeated key stands in the tokens piece by piece, where it cannot be found.
            logprobs=()
            if is_repeated
            else tuple(_changed(value, self._hidden_in_answer) for value in completion.logprobs),
        )

    def _hidden_in_answer(self, text: str) -> str:
        for secret in self._in_answers:
            text = text.replace(secret, HIDDEN)
        return text

    def _hide_cut(self, text: str) -> str:
        for secret in self._written:
            for length in range(len(secret) - 1, MIN_CHARS - 1, -1):
                if secret[:length] + _CUT in text:
                    text = text.replace(secret[:length] + _CUT, HIDDEN + _CUT)
        return text


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    if isinstance(value, dict):
        return {_changed(key, change): _changed(item, change) for key, item in value.items()}
    return value


def _is_one_in(secrets: Iterable[str], texts: Iterable[str | None]) -> bool:
    for text in texts:  # written out: it runs for every answer
        if text and len(text) >= MIN_CHARS:
            for secret in secrets:
                if secret in text:
                    return True
    return False


def _is_key(value: str) -> bool:
    return (
        len(value) >= MIN_CHARS_IN_ANSWERS
        and any(char.isdigit() for char in value)
        and any(char.isalpha() for char in value)
        and not any(char.isspace() for char in value)
    )


def _parts_of(value: str) -> Iterator[str]:
    """The value, the words of it, and what a ``Basic`` one holds."""
    yield value
    words = value.split()
    if len(words) != 2:
        return
    yield words[1]
    if words[0].lower() == "basic":
        try:
            user, _, password = base64.b64decode(words[1], validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return
        yield from (f"{user}:{password}", password)


def _notations(values: Iterable[str]) -> tuple[str, ...]:
    """Every way in which `values` may be written, the longest first: none is left in part by a shorter one."""
    written: set[str] = set()
    for value in values:
        json = orjson.dumps(value).decode()[1:-1]
        written |= {value, json, json.replace("/", r"\/"), repr(value)[1:-1], html.escape(value)}
        written.add("".join(f"\\u{ord(char):04x}" for char in value))
        written |= {quote(value), quote(value, safe=""), quote_plus(value), quote(value, safe="").lower()}
        written |= {text for text in _base64s(value) if len(text) >= MIN_CHARS}
    return tuple(sorted(written, key=lambda text: (-len(text), text)))


def _base64s(value: str) -> Iterator[str]:
    """The Base64 of `value`, at each of the three places at which it can begin within a longer text."""
    raw = value.encode()
    yield base64.b64encode(raw).decode()
    yield base64.urlsafe_b64encode(raw).decode().rstrip("=")
    for shift in (1, 2):
        yield base64.b64encode(b"\0" * shift + raw).decode()[4:-4]
    yield base64.b64encode(raw).decode()[:-4]


NO_SECRETS = Secrets()


class HidingFilter(logging.Filter):
    """Takes secrets out of the records of another library's logger."""

    def __init__(self) -> None:
        super().__init__()
        self._secrets = NO_SECRETS

    def add(self, secrets: Secrets) -> None:
        """Hide these too."""
        self._secrets = self._secrets.plus(secrets)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through, with its message written out."""
        record.msg, record.args = self._secrets.hide(record.getMessage()), ()
        return True
