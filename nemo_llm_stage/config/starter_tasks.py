"""
What the job file of `nemo-llm-stage init` asks: the sample's labels, and a first task for a user's own texts.

Knows words only. How often the embedded model is right is measured by `benchmarks/bench_first_tasks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """
    One question about a text.

    Attributes:
        output_column: The new column.
        prompt: The user's turn, a template.
        system_prompt: The system turn; None for none.
        examples: Turns before the prompt: a question and its answer each.
        choices: The labels that an answer may be; empty for free text.
        max_tokens: Of an answer.
    """

    output_column: str
    prompt: str
    system_prompt: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    max_tokens: int = 128


TOPIC = Task(
    output_column="topic",
    prompt="{{ text }}\n\nTopic:",
    examples=(
        ("Bread rises because yeast makes gas.\n\nTopic:", "food"),
        ("The pitcher threw a perfect game.\n\nTopic:", "sports"),
        ("Water boils at a lower temperature on a mountain.\n\nTopic:", "science"),
        ("The team won the final after extra time.\n\nTopic:", "sports"),
        ("Grate the cheese over the hot pasta.\n\nTopic:", "food"),
        ("A comet's tail always points away from the sun.\n\nTopic:", "science"),
    ),
    choices=("science", "sports", "food"),
    max_tokens=8,
)
"""Of the sample texts. Any model can do it, with examples also the embedded one."""


def first_task(column: str, *, is_embedded: bool) -> Task:
    """Return a first task for a user's own texts in `column`; long ones are cut for the embedded model."""
    text = placeholder(column, " | truncate_chars(3000)" if is_embedded else "")
    return Task(
        output_column="summary",
        prompt=f"Summarize in one sentence:\n\n{text}",
        system_prompt="You are a careful editor. You use only what the text says.",
    )


def placeholder(column: str, filters: str = "") -> str:
    """Return what a template writes for a column's value."""
    name = column if column.isidentifier() else f"row[{column!r}]"
    return f"{{{{ {name}{filters} }}}}"


SAMPLE_TEXTS = (
    "A prism splits white light into its colours, because each of them is bent by a different angle.",
    "The goalkeeper saved two penalties, and the visitors won the cup for the first time.",
    "Let the dough rest for an hour under a damp cloth before you shape the loaves.",
    "Tides are higher when sun, moon and earth stand in one line.",
    "She ran the last lap in under a minute and still had the breath to laugh.",
    "Onions taste sweeter the longer they are cooked, as their sharpness boils away.",
    "Salt lowers the temperature at which water freezes.",
    "After four sets and three hours, the match was decided by a single serve.",
)
"""Rows of the job file for those who have none at hand."""
