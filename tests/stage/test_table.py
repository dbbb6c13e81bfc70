"""Tables in and out: every kind of null is None, and the input stays as it was."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from nemo_llm_stage.errors import InputError
from nemo_llm_stage.stage.table import column_names, rows_of, with_columns

FIELDS = [pa.field("x", pa.string()), pa.field("n", pa.int64())]
ARRAYS = [pa.array([None, "b"], pa.string()), pa.array([1, 2], pa.int64())]


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(["a", None]),
        pd.Series(["a", None], dtype=object),
        pd.Series(["a", np.nan], dtype=object),
        pd.Series(["a", pd.NA], dtype="string"),
        pd.Series(["a", None], dtype=pd.ArrowDtype(pa.large_string())),
        pd.Series(["a", None], dtype="category"),
        pa.chunked_array([["a"], [None]]),
        pa.array(["a", None]).dictionary_encode(),
    ],
    ids=["str", "object", "nan", "string", "arrow", "category", "chunked", "dictionary"],
)
def test_every_kind_of_null_is_none(values: Any) -> None:
    """A prompt must never see the text "nan"."""
    table = pd.DataFrame({"t": values}) if isinstance(values, pd.Series) else pa.table({"t": values})
    assert rows_of(table, ["t"]) == [{"t": "a"}, {"t": None}]


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (pd.Series([1, None], dtype="Int64"), [1, None]),
        (pd.Series([1.5, np.nan]), [1.5, None]),
        (pd.Series([pd.Timestamp("2020-01-02"), pd.NaT]), [dt.datetime(2020, 1, 2), None]),  # noqa: DTZ001
        (pd.Series([[1, 2], None]), [[1, 2], None]),
        (pd.Series([np.array(["a", "b"]), np.array([])], dtype=object), [["a", "b"], []]),
        (pd.Series([{"a": 1}, {"a": None}]), [{"a": 1}, {"a": None}]),
        (pd.Series([[{"role": "user", "content": "hi"}], []]), [[{"role": "user", "content": "hi"}], []]),
        (pd.Series([1, "mixed"], dtype=object), [1, "mixed"]),
    ],
    ids=["int", "float", "time", "list", "ndarray", "struct", "messages", "mixed"],
)
def test_values_are_plain_python(series: pd.Series, expected: list[Any]) -> None:
    """Nested ones too."""
    assert [row["t"] for row in rows_of(pd.DataFrame({"t": series}), ["t"])] == expected


def test_a_frame_keeps_its_index_and_gets_declared_types() -> None:
    """Duplicate labels are no trouble; a column of nulls has its type."""
    frame = pd.DataFrame({"a": [1, 2]}, index=[7, 7])
    out = with_columns(frame, FIELDS, [pa.nulls(2, pa.string()), ARRAYS[1]])
    assert out.index.tolist() == [7, 7]
    assert list(out.columns) == ["a", "x", "n"]
    assert out.dtypes["x"] == pd.ArrowDtype(pa.string())
    assert list(frame.columns) == ["a"]


def test_a_frame_round_trips_through_parquet(tmp_path: Any) -> None:
    """With the types that were declared."""
    out = with_columns(pd.DataFrame({"a": [1, 2]}), FIELDS, ARRAYS)
    out.to_parquet(tmp_path / "a.parquet")
    assert pa.parquet.read_schema(tmp_path / "a.parquet").field("x").type == pa.string()


def test_a_frame_with_nested_columns_can_be_read_back_by_pandas(tmp_path: Any) -> None:
    """A file that only Arrow could read would be no use to who wrote it with pandas."""
    struct = pa.struct([("a", pa.int64())])
    fields = [pa.field("m", struct), pa.field("l", pa.list_(pa.string()))]
    arrays = [pa.array([{"a": 1}, None], struct), pa.array([["b"], []], pa.list_(pa.string()))]
    out = with_columns(pd.DataFrame({"i": [1, 2]}), fields, arrays)
    out.to_parquet(tmp_path / "a.parquet")
    assert pd.read_parquet(tmp_path / "a.parquet")["m"].tolist() == out["m"].tolist() == [{"a": 1}, None]


@pytest.mark.parametrize("make", [pa.table, pa.record_batch])
def test_an_arrow_table_keeps_its_columns(make: Any) -> None:
    """The new ones come last."""
    out = with_columns(make({"a": [1, 2]}), FIELDS, ARRAYS)
    assert out.to_pydict() == {"a": [1, 2], "x": [None, "b"], "n": [1, 2]}


def test_a_table_without_wanted_columns_still_has_rows() -> None:
    """A prompt may use no column at all."""
    assert rows_of(pd.DataFrame({"a": [1, 2]}), []) == [{}, {}]


def test_what_is_no_table_is_refused() -> None:
    """With its type."""
    with pytest.raises(InputError, match="not list"):
        column_names([1])


def test_a_column_that_stands_twice_is_refused() -> None:
    """Only if it is needed."""
    frame = pd.DataFrame([[1, 2, 3]], columns=["a", "a", "b"])
    assert rows_of(frame, ["b"]) == [{"b": 3}]
    with pytest.raises(InputError, match="more than one column 'a'"):
        rows_of(frame, ["a"])
