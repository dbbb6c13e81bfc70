"""A prompt whose shared part comes late is named: a prefix cache cannot keep it."""

from __future__ import annotations

import pytest

from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.prompt.shared_first import late_shares

RULES = "Answer with one word. Never explain. " * 20
TEXT = "word " * 300
ROWS = [
    {"question": f"What is {n}?", "document": f"{n // 10} {TEXT}", "lang": "en", "group": n % 3} for n in range(100)
]


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(RULES + "{{ question }}"),
        Prompt("{{ question }}", system_prompt=RULES),
        Prompt("{{ document }}\n{{ question }}"),
        Prompt("{{ question }} Answer with one word."),
        Prompt(lambda row: f"{row['question']} {RULES}"),
        Prompt("In {{ lang }}: " + RULES + "{{ question }}"),
        Prompt("In {{ group }}: " + RULES + "{{ question }}"),
    ],
    ids=["first", "system", "ordered", "short", "function", "one value", "few values"],
)
def test_nothing_is_said_of_a_prompt_that_is_well_ordered(prompt: Prompt) -> None:
    """Or whose late part is short, or that is a function."""
    assert late_shares(prompt, ROWS) == []


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt("{{ question }}\n" + RULES),
        Prompt("{% if lang %}{{ question | upper }}{% endif %}" + RULES),
        Prompt(RULES, system_prompt="Row {{ question }}"),
        Prompt(messages=[{"role": "user", "content": "{{ question }}"}, {"role": "user", "content": RULES}]),
    ],
)
def test_text_that_all_rows_share_is_named(prompt: Prompt) -> None:
    """With the column that stands before it, and about how many tokens it has."""
    [share] = late_shares(prompt, ROWS)
    assert share.after == "question"
    assert "all rows share" in share.part
    assert share.num_tokens == pytest.approx(len(RULES) / 4, rel=0.05)


def test_a_column_that_repeats_is_named() -> None:
    """A tenth of it has to be computed in any order."""
    [share] = late_shares(Prompt("{{ question }}\n{{ document }}"), ROWS)
    assert share.part == "{{ document }}, the same in 10 rows on average,"
    assert share.after == "question"
    assert share.num_tokens == pytest.approx(0.9 * 1500 / 4, rel=0.05)


def test_both_are_named_and_the_longest_comes_first() -> None:
    """A column that is not there yet, an earlier answer, is taken for one that differs."""
    shares = late_shares(Prompt("{{ answer }} {{ document }}\n" + "Rules. " * 60), ROWS)
    assert [share.after for share in shares] == ["answer", "answer"]
    assert shares[0].num_tokens > shares[1].num_tokens


def test_no_rows_are_no_error() -> None:
    """A constant part is seen without any."""
    assert len(late_shares(Prompt("{{ question }}" + RULES), [])) == 1
