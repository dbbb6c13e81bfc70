"""
Reads two outputs and sets the rows side by side that have the same input.

Reads a bounded number of rows. Knows output folders; knows nothing of how a comparison is shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.recount import output_columns_of
from nemo_llm_stage.dataset.verify import verify
from nemo_llm_stage.errors import OutputConflictError
from nemo_llm_stage.job.record import open_output, read_record
from nemo_llm_stage.job.state import read_state

MAX_ROWS = 20_000
"""Rows that are read of each output, the first ones."""


@dataclass(frozen=True, slots=True)
class Side:
    """
    One of the two jobs.

    Attributes:
        url: Its output folder.
        columns: That it generated.
        stage: What decides its answers, as its record has it.
        counters: Of its committed files.
        cost: Dollars; None without prices.
    """

    url: str
    columns: tuple[str, ...]
    stage: Mapping[str, Any]
    counters: Counters
    cost: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """
    One row of the input, in both outputs.

    Attributes:
        values: Its input columns.
        left: Its row in the first output.
        right: Its row in the second.
    """

    values: Mapping[str, Any]
    left: Mapping[str, Any]
    right: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sides:
    """
    Two jobs and their rows.

    Attributes:
        left: The first job.
        right: The second.
        pairs: Rows that are in both, in the order of the first.
        num_left: Rows that were read of the first.
        num_right: Likewise of the second.
        columns: Generated columns that are compared: name in the first, name in the second.
    """

    left: Side
    right: Side
    pairs: Sequence[Pair]
    num_left: int
    num_right: int
    columns: Sequence[tuple[str, str]]


def read_sides(left_url: str, right_url: str) -> Sides:
    """
    Return the two jobs.

    Raises:
        OutputConflictError: There is no job, or the two have no generated column or no input row in common.
        RunError: A committed file cannot be read.
    """
    left, right = _side(left_url), _side(right_url)
    columns = _columns(left, right)
    if not columns:
        raise OutputConflictError(
            f"{left_url!r} and {right_url!r} generate different columns, so there is nothing to compare: "
            f"{', '.join(left.columns)}; {', '.join(right.columns)}."
        )
    left_rows = list(islice(_rows(left_url), MAX_ROWS))
    right_rows = list(islice(_rows(right_url), MAX_ROWS))
    shared = sorted(_inputs(left_rows, left) & _inputs(right_rows, right))
    pairs = list(_pairs(left_rows, right_rows, shared))
    if not pairs:
        raise OutputConflictError(
            f"{left_url!r} and {right_url!r} have no row of the input in common; compare jobs over the same input."
        )
    return Sides(left, right, pairs, len(left_rows), len(right_rows), columns)


def _side(url: str) -> Side:
    output, plan = open_output(url)
    record = read_record(url)
    status = read_state(url).status
    return Side(
        url=url.rstrip("/"),
        columns=tuple(output_columns_of(record)),
        stage=record["stage"],
        counters=verify(output, plan).counters,
        cost=None if status is None else status.spending.get("cost"),
    )


def _columns(left: Side, right: Side) -> list[tuple[str, str]]:
    same = [(name, name) for name in left.columns if name in right.columns]
    is_one_each = len(left.columns) == len(right.columns) == 1
    return same or ([(left.columns[0], right.columns[0])] if is_one_each else [])


def _rows(url: str) -> Iterator[Mapping[str, Any]]:
    output: OutputFolder = open_output(url)[0]
    for name in sorted(output.committed()):
        yield from output.rows(name)


def _inputs(rows: Sequence[Mapping[str, Any]], side: Side) -> set[str]:
    """Return the names of the columns that were not generated."""
    names = set(rows[0]) if rows else set()
    return {name for name in names if not any(name == own or name.startswith(f"{own}_") for own in side.columns)}


def _pairs(
    left_rows: Sequence[Mapping[str, Any]], right_rows: Sequence[Mapping[str, Any]], shared: Sequence[str]
) -> Iterator[Pair]:
    if not shared:
        return
    by_key: dict[bytes, list[Mapping[str, Any]]] = {}
    for row in reversed(right_rows):
        by_key.setdefault(_key(row, shared), []).append(row)
    for row in left_rows:
        others = by_key.get(_key(row, shared))
        if others:  # of rows with the same input the first of one output goes with the first of the other
            yield Pair({name: row[name] for name in shared}, row, others.pop())


def _key(row: Mapping[str, Any], names: Sequence[str]) -> bytes:
    text = orjson.dumps([row.get(name) for name in names], default=repr, option=orjson.OPT_NON_STR_KEYS)
    return hashlib.blake2b(text, digest_size=16).digest()
