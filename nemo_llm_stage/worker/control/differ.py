"""Whether two rates differ by enough to be told, and certainly. Pure."""

from __future__ import annotations

import math

MIN_DIFFERENCE = 0.05
"""Of two rates: 5 percentage points. A smaller difference is not told, however certain it is."""

MIN_Z = 4.0
"""Standard errors between two rates; by chance one comparison in 16,000 is so far off (two-sided normal)."""


def differ(part: int, whole: int, other_part: int, other_whole: int) -> bool:
    """
    Whether two rates differ by enough, and certainly.

    Source: the two-proportion z-test with a pooled rate.
    """
    rate, other = part / whole, other_part / other_whole
    pooled = (part + other_part) / (whole + other_whole)
    error = math.sqrt(max(1e-12, pooled * (1 - pooled)) * (1 / whole + 1 / other_whole))
    return abs(rate - other) >= MIN_DIFFERENCE and abs(rate - other) >= MIN_Z * error
