"""What a sample says of a total."""

from __future__ import annotations

import random

import pytest

from nemo_llm_stage.report.estimate import estimate_total, student_t


@pytest.mark.parametrize(("degrees", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (120, 1.980)])
def test_students_t_is_that_of_the_tables(degrees: int, t: float) -> None:
    """Two-sided, 95 %."""
    assert student_t(degrees) == pytest.approx(t, abs=5e-4)


def test_the_interval_holds_the_total_as_often_as_it_says() -> None:
    """About 95 times in a hundred."""
    dice = random.Random(1)
    population = [dice.gauss(200, 50) for _ in range(2_000)]
    total = sum(population)
    estimates = [estimate_total(dice.sample(population, 6), len(population)) for _ in range(2_000)]
    share = sum(e.low <= total <= e.high for e in estimates) / len(estimates)  # type: ignore[operator]
    assert 0.93 < share < 0.97


def test_a_whole_population_leaves_no_doubt() -> None:
    """The interval is the total."""
    estimate = estimate_total([1.0, 2.0, 6.0], 3)
    assert (estimate.total, estimate.low, estimate.high) == (9.0, 9.0, 9.0)


def test_one_row_gives_no_interval() -> None:
    """And no total is below 0."""
    assert estimate_total([5.0], 10).low is None
    assert estimate_total([0.0, 10.0], 1000).low == 0.0
