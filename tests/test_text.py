"""Text from outside, made safe to show."""

from __future__ import annotations

import pytest

from nemo_llm_stage.errors import ParseError
from nemo_llm_stage.text import MAX_ERROR_CHARS, one_line, printable

DANGEROUS = {
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x1b[31mred\x1b[0m": r"\x1b[31mred\x1b[0m",
    "\x9b31m": r"\x9b31m",
    "a\rb": r"a\rb".replace(r"\r", r"\x0d"),
    "\u202eexe.txt": r"\u202eexe.txt",
    "\u2066x\u2069": r"\u2066x\u2069",
    "\x00\x7f": r"\x00\x7f",
    "half \ud83d": r"half \ud83d",
}


@pytest.mark.parametrize(("text", "shown"), DANGEROUS.items(), ids=ascii)
def test_what_acts_on_a_terminal_is_escaped(text: str, shown: str) -> None:
    """Nothing of it is lost."""
    assert printable(text) == shown


def test_ordinary_text_stays_as_it_is() -> None:
    """Whatever its language; tabs and line feeds too."""
    text = "Grüße,\t日本語\nไทย 👩‍💻 [/INST] [bold]"
    assert printable(text) is text
    assert printable("a\r\nb") == "a\nb"


def test_one_line_is_folded_and_cut() -> None:
    """With an ellipsis for what is missing."""
    assert one_line("a\r\n  b\tc", 4) == "a b…"
    assert one_line("a\n\x1bb") == r"a \x1bb"


def test_an_error_shows_no_control_characters() -> None:
    """And has an end; lines are kept, a model that is asked again reads them."""
    error = ParseError("one\ntwo \x1b[2J" + "x" * 10_000)
    assert str(error).startswith("one\ntwo \\x1b[2J")
    assert len(str(error)) == MAX_ERROR_CHARS
