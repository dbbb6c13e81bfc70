"""
Which columns use which, and what they need of the input.

Pure. Knows columns' definitions; runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.rows.column import Column
from nemo_llm_stage.stage.keep import KeepIf


class Needs(NamedTuple):
    """
    The columns that a prompt or an expression mentions.

    Attributes:
        user: What mentions them, for messages.
        columns: All of them.
        generated: Those columns that it could take from this stage rather than from the input.
    """

    user: str
    columns: frozenset[str]
    generated: frozenset[str]


def uses_of(columns: Sequence[Column]) -> dict[str, tuple[str, ...]]:
    """
    Return output column → the output columns that its prompt and parameters use.

    A prompt that looks at the row as a whole uses all columns before it.

    Raises:
        ConfigError: The columns use each other in a circle.
    """
    sources = sources_of(columns)
    uses: dict[str, tuple[str, ...]] = {}
    for column in columns:
        used = [sources[name] for name in sorted(column.required_columns) if name in sources]
        if column.prompt.needs_all_columns:
            used += list(uses)
        uses[column.name] = tuple(dict.fromkeys(used))
    try:
        TopologicalSorter(uses).prepare()
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise ConfigError(
            f"columns use each other in a circle: {circle}; choose another output_column for one of them."
        ) from None
    return uses


def sources_of(columns: Sequence[Column]) -> dict[str, str]:
    """Return the answers that prompts may use: written column → output column."""
    return {name: column.name for column in columns for name in column.answers}


def sources_of_keep_if(columns: Sequence[Column]) -> dict[str, str]:
    """Return what `keep_if` may use: written column → output column."""
    choices = {f"{column.name}_choice": column.name for column in columns if column.explode}
    return sources_of(columns) | choices


def needs_of(columns: Sequence[Column], keep_if: KeepIf | None) -> Iterator[Needs]:
    """Yield what each prompt and `keep_if` mention."""
    sources = sources_of(columns)
    for column in columns:
        yield Needs("the prompt", column.required_columns, _without(column.name, sources))
    if keep_if is not None:
        yield Needs("keep_if", keep_if.required_columns, frozenset(sources_of_keep_if(columns)))


def _without(name: str, sources: Mapping[str, str]) -> frozenset[str]:
    return frozenset(answer for answer, column in sources.items() if column != name)
