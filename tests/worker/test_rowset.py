"""Sets of rows are sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nemo_llm_stage.worker.rowset import END, RowSet

PLACES = st.sets(st.integers(0, 40))


def rows_of(rows: RowSet) -> set[int]:
    return set(rows.within(0, 100))


@given(one=PLACES, other=PLACES, num=st.integers(0, 50), shift=st.integers(0, 5))
def test_they_are_what_sets_are(one: set[int], other: set[int], num: int, shift: int) -> None:
    """Union, difference, membership, size, the first few."""
    mine, others = RowSet.of(one), RowSet.of(other)
    assert rows_of(mine | others) == one | other
    assert rows_of(mine - others) == one - other
    assert {place for place in range(45) if place in mine} == one
    assert (len(mine), bool(mine)) == (len(one), bool(one))
    first, rest = mine.split(num)
    assert (sorted(rows_of(first)), sorted(rows_of(rest))) == (sorted(one)[:num], sorted(one)[num:])
    assert rows_of(mine.shift(shift)) == {place + shift for place in one}


def test_one_may_go_on_to_the_end() -> None:
    """Wherever that is."""
    rows = RowSet.of([1]) | RowSet.span(5)
    assert rows.is_open
    assert 10**9 in rows
    first, rest = rows.split(3)
    assert first.ranges == ((1, 2), (5, 7))
    assert rest.ranges == ((7, END),)
    assert rest.shift(-2).ranges == ((5, END),)
    assert (RowSet.span(0) - rows).ranges == ((0, 1), (2, 5))
