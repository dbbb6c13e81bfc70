"""What two jobs' answers have in common, as numbers. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from nemo_llm_stage.report.compare.sides import Pair, Side, Sides

MAX_LABELS = 12
MAX_DIFFERENT = 100
"""Rows that differ and are shown."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """
    How the answers of one column agree.

    Attributes:
        column: Its name in the first job.
        other: Its name in the second.
        num_both: Rows that both have answered.
        num_same: Those with the same answer, spaces at the ends aside.
        only_left: Rows that only the first has answered.
        only_right: Likewise the second.
        kappa: Cohen's kappa; None where the answers are no labels.
        labels: The labels of both, in order; none where they are no labels.
        table: Label of the first, label of the second → rows.
        means: What is compared on average, e.g. ``characters`` → its mean in both; None where it is not known.
        different: Some of the rows whose answers differ.
    """

    column: str
    other: str
    num_both: int
    num_same: int
    only_left: int
    only_right: int
    kappa: float | None
    labels: Sequence[str]
    table: Mapping[tuple[str, str], int]
    means: Mapping[str, tuple[float | None, float | None]]
    different: Sequence[Pair]


def agreement_of(sides: Sides, column: str, other: str) -> Agreement:
    """Return how the answers of a column agree."""
    answers = [(pair, _text(pair.left.get(column)), _text(pair.right.get(other))) for pair in sides.pairs]
    both = [(left, right) for _, left, right in answers if left is not None and right is not None]
    num_same = sum(left == right for left, right in both)
    labels = _labels(both)
    table = Counter(both) if labels else Counter()
    return Agreement(
        column=column,
        other=other,
        num_both=len(both),
        num_same=num_same,
        only_left=sum(left is not None and right is None for _, left, right in answers),
        only_right=sum(left is None and right is not None for _, left, right in answers),
        kappa=_kappa(both, num_same) if labels else None,
        labels=labels,
        table=table,
        means=dict(_means(sides.pairs, column, other)),
        different=[pair for pair, left, right in answers if left != right][:MAX_DIFFERENT],
    )


def differences(left: Side, right: Side) -> list[tuple[str, str, str]]:
    """Return the settings in which the two jobs differ: name, the first's value, the second's."""
    one, other = dict(_flat(left.stage)), dict(_flat(right.stage))
    return [
        (name, one.get(name, ""), other.get(name, ""))
        for name in sorted(one.keys() | other.keys(), key=_importance)
        if one.get(name, "") != other.get(name, "")
    ]


def totals(side: Side) -> dict[str, float | None]:
    """Return the counts of a job that are worth comparing, by their names for people."""
    counters = side.counters
    num = max(1, counters.num_answered)
    return {
        "rows": counters.num_rows,
        "answered": counters.num_answered,
        "failed": counters.num_failed,
        "skipped": counters.num_skipped,
        "cut off": counters.num_cut_off,
        "requests": counters.num_attempts,
        "wasted requests": counters.num_wasted_attempts,
        "input tokens": counters.input_tokens,
        "output tokens": counters.output_tokens,
        "output tokens an answered row": counters.output_tokens / num,
        "cost ($)": side.cost,
    }


def _importance(name: str) -> tuple[bool, bool, str]:
    """Model and prompt come first: they are what most comparisons are about."""
    return "model" not in name.split("."), "prompt" not in name.split("."), name


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and not any(isinstance(item, list | Mapping) for item in value):
        yield path, ", ".join(map(str, value))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    elif value is not None:
        yield path, str(value)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.strip() if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _labels(both: Sequence[tuple[str, str]]) -> list[str]:
    """Return the labels, most frequent first; none where the answers are no labels."""
    counts = Counter(answer for pair in both for answer in pair)
    is_repeated = len(counts) * 4 <= sum(counts.values())
    return [label for label, _ in counts.most_common()] if len(counts) <= MAX_LABELS and is_repeated else []


def _kappa(both: Sequence[tuple[str, str]], num_same: int) -> float | None:
    """
    Return (p - e) / (1 - e) with the share p of equal answers, and the share e that chance alone would give.

    Source: Cohen, Educational and Psychological Measurement 20 (1), 1960.
    """
    num = len(both)
    left, right = Counter(pair[0] for pair in both), Counter(pair[1] for pair in both)
    chance = sum(left[label] * right[label] for label in left) / num**2
    return None if chance == 1 else (num_same / num - chance) / (1 - chance)


def _means(pairs: Sequence[Pair], column: str, other: str) -> Iterator[tuple[str, tuple[float | None, float | None]]]:
    measures: dict[str, Callable[[Mapping[str, Any], str], Any]] = {
        "value": lambda row, name: row.get(name),
        "characters": lambda row, name: len(row[name]) if isinstance(row.get(name), str) else None,
        "output tokens": lambda row, name: (row.get(f"{name}_meta") or {}).get("output_tokens"),
        "input tokens": lambda row, name: (row.get(f"{name}_meta") or {}).get("input_tokens"),
        "latency (s)": lambda row, name: (row.get(f"{name}_meta") or {}).get("latency_s"),
    }
    for words, measure in measures.items():
        left = _mean([measure(pair.left, column) for pair in pairs])
        right = _mean([measure(pair.right, other) for pair in pairs])
        if left is not None or right is not None:
            yield words, (left, right)


def _mean(values: Sequence[Any]) -> float | None:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return fmean(numbers) if numbers else None
