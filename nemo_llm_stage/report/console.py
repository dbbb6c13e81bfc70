"""
The console that everything is shown on: text stays text.

Rows, answers, errors and names come from outside. What looks like rich's markup in them (``[/INST]``, ``[bold]``) is
shown as it stands, and what would act on the terminal is shown as an escape. Knows nothing of jobs.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from nemo_llm_stage.text import printable


class PlainConsole(Console):
    """A console without markup, emoji codes and highlighting; every string on it is made printable."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **settings})

    def render_str(self, text: str, **options: Any) -> Text:
        """Return `text` as rich's own type; called for each string that is printed, within a table too."""
        return super().render_str(printable(text), **options)


def shown(value: object, style: str = "") -> Text:
    """Return `value` as text in a style; printable wherever it is put, in a panel's title too."""
    return Text(printable(str(value)), style=style)
