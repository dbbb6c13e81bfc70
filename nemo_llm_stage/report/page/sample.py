"""
A sample of a job's committed rows, and what it says about latency, tokens, servers and values.

Reads a bounded number of rows, whatever the size of the output. Knows output folders; knows nothing of HTML.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from nemo_llm_stage.dataset.folder import OutputFolder

MAX_FILES = 32
"""Files read, spread evenly over the output."""

MAX_ROWS = 8192
"""Rows read; as many of each file."""

MAX_LABELS = 12
"""A text column with more distinct values than this is free text, not labels."""


@dataclass(frozen=True, slots=True)
class SampledRow:
    """
    One row of the output.

    Attributes:
        place: ``file, row n`` of the output, n from 1.
        values: Column name → value.
    """

    place: str
    values: Mapping[str, Any]

    def errors(self, output_columns: Iterable[str]) -> dict[str, str]:
        """Return the error of each output column that failed."""
        found = {}
        for name in output_columns:
            error = self.values.get(f"{name}_error")
            if error is not None and not error.startswith("skipped:"):
                found[name] = error
        return found

    def numbers(self, output_columns: Iterable[str], field: str) -> list[float]:
        """Return a number of the metas, e.g. ``latency_s``, of each output column that has it."""
        found = []
        for name in output_columns:
            meta = self.values.get(f"{name}_meta")
            if meta is not None and meta.get(field) is not None:
                found.append(meta[field])
        return found


def sample_rows(output: OutputFolder) -> list[SampledRow]:
    """
    Return rows of the output, in order: as many from each of at most `MAX_FILES` files, `MAX_ROWS` in all.

    Raises:
        RunError: A file cannot be read.
    """
    names = sorted(output.committed())
    stride = max(1, -(-len(names) // MAX_FILES))
    chosen = names[::stride]
    share = MAX_ROWS // max(1, len(chosen))
    with ThreadPoolExecutor(1 if output.folder.is_local else MAX_FILES) as pool:  # a store takes calls side by side
        files = list(pool.map(lambda name: list(itertools.islice(output.rows(name), share)), chosen))
    return [
        SampledRow(f"{name}, row {number:,}", row)
        for name, rows in zip(chosen, files, strict=True)
        for number, row in enumerate(rows, 1)
    ]


def metas_of(rows: Iterable[SampledRow], output_columns: Sequence[str], field: str) -> list[float]:
    """Return a number of the metas, e.g. ``latency_s``, over all rows and output columns that have it."""
    names = [f"{name}_meta" for name in output_columns]
    metas = (meta for row in rows for name in names if (meta := row.values.get(name)))
    return [number for meta in metas if (number := meta.get(field)) is not None]


def servers_of(rows: Iterable[SampledRow], output_columns: Sequence[str]) -> list[tuple[str, str, int, float | None]]:
    """Return for each endpoint and model: the two, its answers, and their median latency in seconds; most first."""
    latencies: dict[tuple[str, str], list[float | None]] = {}
    for row in rows:
        for name in output_columns:
            meta = row.values.get(f"{name}_meta") or {}
            if meta.get("endpoint") or meta.get("model"):
                key = (str(meta.get("endpoint") or "unknown"), str(meta.get("model") or "unknown"))
                latencies.setdefault(key, []).append(meta.get("latency_s"))
    servers = [(*key, len(found), median([s for s in found if s is not None])) for key, found in latencies.items()]
    return sorted(servers, key=lambda server: -server[2])


def median(numbers: Sequence[float]) -> float | None:
    """Return the middle one of `numbers`, the lower one of two; None for none."""
    return sorted(numbers)[(len(numbers) - 1) // 2] if numbers else None


def labels_of(rows: Iterable[SampledRow], column: str) -> list[tuple[str, int]] | None:
    """Return each label and its count, most first; None for a column that holds no labels."""
    values = [row.values.get(column) for row in rows]
    counts = Counter(str(value) for value in values if isinstance(value, str | bool))
    is_repeated = len(counts) * 2 <= sum(counts.values())
    return counts.most_common() if counts and len(counts) <= MAX_LABELS and is_repeated else None


def numbers_of(rows: Iterable[SampledRow], column: str) -> list[float] | None:
    """Return the numbers of a column; None for one that holds none."""
    values = [row.values.get(column) for row in rows]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return numbers or None


def extremes(rows: Sequence[SampledRow], key: Callable[[SampledRow], float], num_rows: int = 20) -> list[SampledRow]:
    """Return the rows with the highest `key`, highest first; those where it is 0 are left out."""
    ranked = heapq.nlargest(num_rows, ((key(row), -number) for number, row in enumerate(rows)))
    return [rows[-number] for value, number in ranked if value > 0]
