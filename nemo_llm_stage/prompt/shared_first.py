"""
What a prompt shares with those of other rows, and says too late: text after the first place where rows differ.

A server's prefix cache keeps a prompt only as far as it begins like another one. Knows templates and rows; knows
nothing of servers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateSyntaxError, meta, nodes

from nemo_llm_stage.prompt.prompt import Prompt
from nemo_llm_stage.prompt.template import BYTES_PER_TOKEN, ROW_NAME, environment

MIN_TOKENS = 64.0
"""Tokens a row from which on a late shared part is named: four blocks of vLLM's cache."""

MIN_REPEATS = 2.0
"""Rows with the same value of a column, on average, from which on the column counts as shared."""


@dataclass(frozen=True, slots=True)
class LateShare:
    """
    A part of the prompt that rows share, and that stands after one in which they differ.

    Attributes:
        part: For people: the shared part.
        after: The column that differs and stands before it.
        num_tokens: Of the part in a row, about: those that a prefix cache could have kept.
    """

    part: str
    after: str
    num_tokens: float


@dataclass(frozen=True, slots=True)
class _Piece:
    """A constant text, or the columns that a place of the template prints."""

    text: str = ""
    columns: tuple[str, ...] = ()


def late_shares(prompt: Prompt, rows: Sequence[Mapping[str, Any]]) -> list[LateShare]:
    """
    Return the parts of `prompt` that rows share and that come after one in which they differ; the longest first.

    Args:
        prompt: A prompt that is a function, or turns of a column, has none that could be told.
        rows: Some that stand together in the input.
    """
    pieces = _pieces_of(prompt)
    seen = {name: _repeats(name, rows) for piece in pieces for name in piece.columns}
    num_rows = float(max(2, len(rows)))
    found: list[LateShare] = []
    differing, num_alike, num_late, num_bytes = "", num_rows, 0.0, 0
    for piece in pieces:
        if not piece.columns:
            num_bytes += len(piece.text.encode()) if differing else 0
            num_late += _lost(len(piece.text.encode()), num_alike, num_rows)
            continue
        rarest = min(piece.columns, key=lambda name: seen[name][0])
        num_repeats, length = seen[rarest]
        if differing and piece.columns == (rarest,) and num_repeats >= MIN_REPEATS * num_alike:
            part = f"{{{{ {rarest} }}}}, the same in {num_repeats:.0f} rows on average,"
            found.append(LateShare(part, differing, _lost(length, num_alike, num_repeats)))
        if num_repeats < num_alike:
            differing, num_alike = rarest, num_repeats
    found.append(LateShare(f"{num_bytes:,} bytes of text that all rows share", differing, num_late))
    late = [share for share in found if share.num_tokens >= MIN_TOKENS]
    return sorted(late, key=lambda share: -share.num_tokens)


def _lost(num_bytes: float, num_alike: float, num_repeats: float) -> float:
    """
    Return the tokens of a part that are computed again in a row, on average.

    Args:
        num_bytes: Of the part.
        num_alike: Rows that are alike up to the part: they share it as it stands.
        num_repeats: Rows with the same part: they would share it if it stood first.
    """
    return num_bytes / BYTES_PER_TOKEN * (1 / num_alike - 1 / num_repeats)


def _pieces_of(prompt: Prompt) -> list[_Piece]:
    described = prompt.describe()
    if not prompt.is_pure or described["messages_column"] is not None:
        return []
    sources = [described["system_prompt"] or "", *(turn["content"] for turn in described["messages"])]
    return [piece for source in sources for piece in _pieces_of_source(source)]


def _pieces_of_source(source: str) -> list[_Piece]:
    try:
        tree = environment().parse(source)
    except TemplateSyntaxError:  # told when the template is made
        return []
    pieces = []
    for node in tree.body:
        parts = node.nodes if isinstance(node, nodes.Output) else [node]
        for part in parts:
            if isinstance(part, nodes.TemplateData):
                pieces.append(_Piece(part.data))
            elif columns := _columns_of(part):
                pieces.append(_Piece(columns=columns))
    return pieces


def _columns_of(node: nodes.Node) -> tuple[str, ...]:
    """Return the columns that a place of a template mentions; by ``row['name']`` they are not told apart."""
    tree = nodes.Template([nodes.Output([node])] if isinstance(node, nodes.Expr) else [node], lineno=1)
    tree.set_environment(environment())
    return tuple(sorted(meta.find_undeclared_variables(tree) - {ROW_NAME}))


def _repeats(column: str, rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return how many rows have the same value of a column, and how long it is, on average."""
    values = [str(row[column]) for row in rows if column in row]
    if not values:
        return 1.0, 0.0
    return len(values) / len(set(values)), sum(len(value.encode()) for value in values) / len(values)
