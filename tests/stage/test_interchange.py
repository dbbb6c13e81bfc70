"""`process` takes tables of other libraries and gives the same kind back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from nemo_llm_stage import LLMStage
from nemo_llm_stage.errors import InputError
from nemo_llm_stage.testing import ScriptedClient

TEXTS = ["one", None, "three"]


def stage() -> LLMStage:
    client = ScriptedClient(lambda messages: messages[-1]["content"].upper())
    return LLMStage(client=client, model="m", prompt="{{ text }}", output_column="x", has_meta=False)


def arrow() -> pa.Table:
    return pa.table({"text": TEXTS, "n": [1, 2, 3]})


@pytest.mark.parametrize(
    ("make", "rows_of"),
    [
        (lambda: pl.from_arrow(arrow()), lambda frame: frame.to_dicts()),
        (lambda: datasets.Dataset(arrow()), list),
        (lambda: duckdb.from_arrow(arrow()), lambda relation: pa.table(relation).to_pylist()),
        (lambda: arrow().to_reader(), lambda reader: reader.read_all().to_pylist()),
        (arrow, lambda table: table.to_pylist()),
    ],
    ids=["polars", "datasets", "duckdb", "reader", "arrow"],
)
def test_the_same_kind_comes_back(make: Callable[[], Any], rows_of: Callable[[Any], list[dict[str, Any]]]) -> None:
    """With the same rows in the same order."""
    table = make()
    result = stage().process(table)
    assert type(result) is type(table)
    rows = rows_of(result)
    assert [row["x"] for row in rows] == ["ONE", None, "THREE"]
    assert [row["n"] for row in rows] == [1, 2, 3]
    assert rows[1]["x_skipped"] == "column 'text' is null"


class Stream:
    """An object of a library that nobody has heard of."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def test_any_arrow_stream_gives_an_arrow_table() -> None:
    """Nobody knows how to make the other object again."""
    result: Any = stage().process(Stream(arrow()))
    assert isinstance(result, pa.Table)
    assert result["x"].to_pylist() == ["ONE", None, "THREE"]


def test_a_dataset_keeps_its_selection_and_its_features() -> None:
    """Rows that were filtered out stay out; a ClassLabel stays one."""
    label = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    whole = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 1]}, features=features)
    result = stage().process(whole.select([2, 0]))
    assert result["x"][:] == ["C", "A"]
    assert result.features["label"] == label


def test_a_polars_frame_keeps_its_types() -> None:
    """Categories, enums and dates are what they were."""
    frame = pl.DataFrame({"text": ["a"], "c": pl.Series(["u"], dtype=pl.Categorical), "d": ["2020-01-02"]})
    frame = frame.with_columns(pl.col("d").str.to_date())
    assert stage().process(frame).drop("x", "x_error", "x_skipped").equals(frame)


@pytest.mark.parametrize(
    "table",
    [["text"], {"text": ["a"]}, "text", pa.chunked_array([["a"]]), None],
    ids=lambda table: type(table).__name__,
)
def test_anything_else_is_refused(table: Any) -> None:
    """By the name of its type, and with what would do."""
    with pytest.raises(InputError, match=r"takes a pandas|holds no table"):
        stage().process(table)


def test_a_row_of_many_columns_reaches_a_prompt_that_sees_them_all() -> None:
    """Ten thousand columns are no trouble."""
    wide = pd.DataFrame([range(10_000)], columns=[f"c{number}" for number in range(10_000)])
    client = ScriptedClient(lambda messages: messages[-1]["content"])
    seen = LLMStage(client=client, model="m", prompt="{{ row | length }}", output_column="x").process(wide)
    assert seen["x"].to_list() == ["10000"]
