"""Arrays of Python values are those that Arrow makes, without pandas where it is not needed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_llm_stage.stage.arrays import array_of

KINDS = {
    pa.string(): st.text(),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.list_(pa.string()): st.lists(st.text()),
}


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.DataType, list[Any]]:
    kind = draw(st.sampled_from(list(KINDS)))
    return kind, draw(st.lists(st.none() | KINDS[kind]))


@given(columns())
def test_an_array_is_the_one_that_arrow_makes(column: tuple[pa.DataType, list[Any]]) -> None:
    """Of every type, with nulls and without."""
    kind, values = column
    made = array_of(values, kind)
    made.validate(full=True)
    assert made.equals(pa.array(values, type=kind))


@pytest.mark.parametrize(
    ("values", "kind"),
    [(["\ud800"], pa.string()), ([5], pa.string()), ([2**31], pa.int32()), ([True], pa.int64()), (["1"], pa.float64())],
)
def test_a_value_that_does_not_fit_is_refused(values: list[Any], kind: pa.DataType) -> None:
    """As Arrow refuses it."""
    with pytest.raises((pa.ArrowException, TypeError, ValueError, OverflowError)):
        array_of(values, kind)


def test_texts_and_numbers_need_no_pandas() -> None:
    """A worker that writes them does not import it."""
    code = (
        "import sys, pyarrow as pa; from nemo_llm_stage.stage.arrays import array_of; "
        "array_of(['a', None], pa.string()); array_of([1, None], pa.int64()); array_of([None], pa.list_(pa.string())); "
        "print('pandas' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
