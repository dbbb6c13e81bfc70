"""Columns of several files: the type that holds all values, or a refusal before anything is paid."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage.dataset.files import find_files
from nemo_llm_stage.dataset.plan import Plan, make_plan
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.errors import InputError


def plan_over(folder: Path, *columns: pa.Array) -> Plan:
    for number, values in enumerate(columns):
        pq.write_table(pa.table({"a": values}), folder / f"{number}.parquet")
    return make_plan(find_files(folder))


def values_of(plan: Plan) -> list[Any]:
    parts = [read_partition(partition, plan.schema, rows_per_chunk=100) for partition in plan.partitions]
    return [value for part in parts for table in part for value in table.column("a").to_pylist()]


@pytest.mark.parametrize(
    ("left", "right", "kind"),
    [
        (pa.array(["x"]).dictionary_encode(), pa.array(["y"]), pa.string()),
        (pa.array(["x"], pa.string_view()), pa.array(["y"]), pa.string()),
        (pa.array(["x"], pa.large_string()), pa.array(["y"]), pa.large_string()),
        (pa.array([dt.date(2020, 1, 1)]), pa.array([0], pa.timestamp("us")), pa.timestamp("us")),
        (pa.array([2**64 - 1], pa.uint64()), pa.array([-1]), pa.decimal128(20, 0)),
        (pa.array([2**32 - 1], pa.uint32()), pa.array([-1], pa.int32()), pa.int64()),
        (pa.array([1], pa.int8()), pa.array([1.5]), pa.float64()),
        (pa.array([2**53]), pa.array([1.5]), pa.float64()),
        (pa.array([Decimal("1.25")]), pa.array([Decimal("100000.5")]), pa.decimal128(8, 2)),
        (pa.array([Decimal("1.25")]), pa.array([7]), pa.decimal128(22, 2)),
        (pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("ns")), pa.timestamp("ns")),
        (pa.array([[1]]), pa.array([[1.5]]), pa.list_(pa.float64())),
        (pa.array([{"x": 1}]), pa.array([{"y": "z"}]), pa.struct([("x", pa.int64()), ("y", pa.string())])),
        (pa.nulls(1), pa.array([b"x"]), pa.binary()),
    ],
    ids=lambda value: str(value) if isinstance(value, pa.DataType) else str(value.type),
)
def test_types_that_go_together_become_the_one_that_holds_all(
    tmp_path: Path, left: pa.Array, right: pa.Array, kind: pa.DataType
) -> None:
    """With every value as it was."""
    plan = plan_over(tmp_path, left, right)
    assert plan.schema.field("a").type == kind
    expected = [*left.cast(kind).to_pylist(), *right.cast(kind).to_pylist()]
    assert values_of(plan) == expected


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (pa.array([Decimal("0.1")]), pa.array([0.1])),
        (pa.array(["x"]), pa.array([1])),
        (pa.array(["x"]), pa.array([b"x"])),
        (pa.array([1], pa.timestamp("us", "UTC")), pa.array([1], pa.timestamp("us"))),
    ],
    ids=lambda value: str(value.type),
)
def test_types_that_no_type_holds_are_refused(tmp_path: Path, left: pa.Array, right: pa.Array) -> None:
    """Naming both files, the column and both types."""
    with pytest.raises(InputError) as caught:
        plan_over(tmp_path, left, right)
    for word in ("'a'", "0.parquet", "1.parquet", str(left.type), str(right.type)):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (pa.array([2**53 + 1]), pa.array([1.5])),
        (pa.array([2**62], pa.timestamp("us")), pa.array([1], pa.timestamp("ns"))),
    ],
    ids=lambda value: str(value.type),
)
def test_a_value_that_the_common_type_cannot_hold_is_found_when_planning(
    tmp_path: Path, left: pa.Array, right: pa.Array
) -> None:
    """By reading the columns in question, so that nothing is committed before."""
    with pytest.raises(InputError, match=r"column 'a' is .* in .*0\.parquet.* does not hold all of its values"):
        plan_over(tmp_path, left, right)


def test_a_column_that_one_file_lacks_is_nullable(tmp_path: Path) -> None:
    """Though it is required in the other."""
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False)])
    pq.write_table(pa.table([[1]], schema=schema), tmp_path / "0.parquet")
    pq.write_table(pa.table({"b": [1]}), tmp_path / "1.parquet")
    plan = make_plan(find_files(tmp_path))
    assert plan.schema.field("a").nullable
    assert values_of(plan) == [1, None]


def test_metadata_that_files_disagree_on_is_dropped(tmp_path: Path) -> None:
    """What stands in both is kept."""
    for number in range(2):
        field = pa.field("a", pa.int64(), metadata={"unit": "m", "source": str(number)})
        pq.write_table(pa.table([[1]], schema=pa.schema([field])), tmp_path / f"{number}.parquet")
    assert make_plan(find_files(tmp_path)).schema.field("a").metadata == {b"unit": b"m"}
