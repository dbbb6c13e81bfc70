"""
What a sample of rows says about all of them.

Pure arithmetic. Knows numbers; knows nothing of what they count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """
    A total over a dataset.

    Attributes:
        per_row: The sample's mean.
        total: Of all rows.
        low: Lower end of the interval that holds the total with 95 % confidence; None for a sample of one.
        high: Upper end.
    """

    per_row: float
    total: float
    low: float | None
    high: float | None


def estimate_total(sample: Sequence[float], num_rows: int) -> Estimate:
    """
    Return the total over `num_rows` rows, estimated from `sample`, drawn at random.

    With n the sample's size, m its mean, s its standard deviation and N all rows, the interval is
    ``N · (m ± t · s / √n · √(1 - n / N))``, t being Student's for n - 1 degrees of freedom; never below 0.
    Source: Cochran, Sampling Techniques, 3rd edition, 2.8.

    Args:
        sample: At least one value.
        num_rows: At least as many.
    """
    num, mean = len(sample), fmean(sample)
    if num < 2:
        return Estimate(mean, mean * num_rows, None, None)
    rest = max(0.0, 1 - num / num_rows)
    margin = student_t(num - 1) * stdev(sample) / math.sqrt(num) * math.sqrt(rest)
    return Estimate(mean, mean * num_rows, max(0.0, mean - margin) * num_rows, (mean + margin) * num_rows)


def student_t(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return the t that a Student's t variable stays within, on both sides of 0, with probability `confidence`."""
    low, high = 0.0, 1.0
    while _central_probability(high, degrees) < confidence:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, degrees) < confidence else (low, middle)
    return high


def _central_probability(t: float, degrees: int) -> float:
    """P(-t < T < t) in closed form. Source: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(degrees))
    cos2 = math.cos(theta) ** 2
    is_odd = degrees % 2
    term = total = math.cos(theta) if is_odd else 1.0
    for k in range(2 if is_odd else 1, degrees - 2, 2):
        term *= cos2 * k / (k + 1)
        total += term
    if not is_odd:
        return math.sin(theta) * total
    return 2 / math.pi * (theta + (math.sin(theta) * total if degrees > 1 else 0.0))
