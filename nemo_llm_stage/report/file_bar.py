"""A bar on stderr for what looks at many files. Knows numbers only; shows nothing where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nemo_llm_stage.report.console import PlainConsole


@contextmanager
def file_bar(words: str) -> Iterator[Callable[[int, int], None]]:
    """
    Show a bar while the block runs; it is gone afterwards.

    Args:
        words: What is counted.

    Yields:
        What to call with how many are done, and of how many.
    """
    console = PlainConsole(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(words), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(words, total=None)
        yield lambda num_done, num_in_all: bar.update(task, completed=num_done, total=num_in_all)
