"""Numbers as people read them."""

from __future__ import annotations

import pytest

from nemo_llm_stage.report.units import about, duration, latency, money, percent


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (0, 8, "0.00 %"),
        (1, 3, "33.33 %"),
        (8, 8, "100.00 %"),
        (999_999, 1_000_000, "99.99 %"),
        (1, 1_000_000, "0.01 %"),
        (0, 0, ""),
    ],
)
def test_only_the_whole_is_a_hundred_percent(part: int, whole: int, words: str) -> None:
    """And only nothing is zero percent."""
    assert percent(part, whole) == words


def test_times_are_told_in_two_units() -> None:
    """Estimates are coarser."""
    assert [duration(s) for s in (8.4, 200, 18_600, 187_200)] == ["8 s", "3 min 20 s", "5 h 10 min", "2 d 4 h"]
    assert [about(s) for s in (0.2, 12, 141, 3601, 86_400)] == ["1 s", "12 s", "2 min 20 s", "1 h", "1 d"]
    assert [latency(s) for s in (None, 0.04, 3.0, 85.2)] == ["-", "40 ms", "3.0 s", "85 s"]


def test_money_has_as_many_decimals_as_matter() -> None:
    """A hundredth of a cent for small jobs, dollars for large ones."""
    assert [money(x) for x in (0, 0.0042, 0.14, 1234.5)] == ["$0.00", "$0.0042", "$0.14", "$1,234"]
