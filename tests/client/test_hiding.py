"""Secrets are found in every notation, and nothing else is."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest

from nemo_llm_stage.client.hiding import Secrets
from nemo_llm_stage.core import Completion

KEY = "sk-a/b+c=d&0123456789'x"


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        json.dumps(KEY)[1:-1],
        json.dumps(KEY)[1:-1].replace("/", r"\/"),
        quote(KEY),
        quote(KEY, safe=""),
        quote(KEY, safe="").lower(),
        quote_plus(KEY),
        html.escape(KEY),
        f"Bearer {KEY}",
    ],
)
def test_a_secret_is_found_in_every_notation(written: str) -> None:
    """Of JSON, URLs and HTML."""
    assert Secrets([KEY]).hide(f"with <{written}>, no") in {"with <***>, no", "with <Bearer ***>, no"}


@pytest.mark.parametrize("before", ["", "u", "us"])
def test_a_secret_is_found_in_base64(before: str) -> None:
    """Whatever stands before it, as in basic authentication."""
    packed = base64.b64encode(f"{before}{KEY}:more".encode()).decode()
    middle = base64.b64encode(b"x" * len(before) + KEY.encode()).decode()[8:-8]
    assert middle in packed
    assert middle not in Secrets([KEY]).hide(f"Basic {packed}")


def test_what_a_header_holds_is_secret_in_parts() -> None:
    """The scheme before it is not; the password of a basic one is."""
    basic = "Basic " + base64.b64encode(b"user:pass-word-1").decode()
    secrets = Secrets(["Bearer my-token-123", basic])
    assert secrets.hide("my-token-123, Bearer x, pass-word-1, Basic y") == "***, Bearer x, ***, Basic y"


def test_what_an_ellipsis_left_is_hidden() -> None:
    """A message is cut anywhere, in the middle of a key too."""
    assert Secrets([KEY]).hide(f"not {KEY[:12]}…") == "not ***…"


@pytest.mark.parametrize("value", ["EMPTY", "ollama", "abc", "lm-studio"])
def test_a_placeholder_is_no_secret(value: str) -> None:
    """Nor is a word of a few letters."""
    assert Secrets([value]).hide(f"the {value}") == f"the {value}"


def test_an_answer_is_freed_of_keys_only() -> None:
    """A short word that stands in a header stays in the text of an answer, which is data."""
    secrets = Secrets([KEY, "research"])
    completion = Completion((f"a {KEY} for research",), ("stop",), (f"think {KEY}",), model="research-model")
    cleaned = secrets.cleaned(completion)
    assert (cleaned.texts, cleaned.reasoning) == (("a *** for research",), ("think ***",))
    assert cleaned.model == "***-model"


def test_an_answer_without_secrets_is_passed_on() -> None:
    """As it is."""
    completion = Completion(("fine",), ("stop",), (None,), model="m")
    assert Secrets([KEY]).cleaned(completion) is completion


def test_logprobs_are_freed_too() -> None:
    """All of them go where the answer repeats the key: its pieces cannot be found there."""
    beside = {"content": [{"token": f"x{KEY}", "bytes": [1]}]}
    assert Secrets([KEY]).cleaned(Completion(("a",), logprobs=(beside,))).logprobs == (
        {"content": [{"token": "x***", "bytes": [1]}]},
    )
    assert Secrets([KEY]).cleaned(Completion((KEY,), logprobs=(beside,))).logprobs == ()


def test_the_errors_behind_an_error_are_cleaned() -> None:
    """They are printed in a traceback."""
    behind = OSError(f"no {KEY}")
    error = ValueError(f"because of {KEY}\n\x1b[2J")
    error.__cause__ = behind
    Secrets([KEY]).clean(error)
    assert (str(error), str(behind)) == (r"because of *** \x1b[2J", "no ***")
