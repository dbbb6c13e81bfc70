"""Partitions cover the input exactly, and reading them gives every row once and in order."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage.dataset.files import find_files
from nemo_llm_stage.dataset.plan import Plan, make_plan
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.errors import InputError


def read_all(plan: Plan, rows_per_chunk: int = 7) -> list[dict[str, Any]]:
    tables = [
        table
        for partition in plan.partitions
        for table in read_partition(partition, plan.schema, rows_per_chunk=rows_per_chunk)
    ]
    assert all(table.schema == plan.schema and table.num_rows <= rows_per_chunk for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def write_jsonl(path: Path, rows: list[Any], end: str = "\n") -> None:
    text = "\n".join(json.dumps(row) for row in rows) + end
    data = text.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = pa.Codec("zstd").compress(data, asbytes=True)
    path.write_bytes(data)


ROWS = [{"id": i, "text": f"row {i} " + "x" * (i % 50)} for i in range(100)]


@pytest.mark.parametrize("row_group_size", [1, 13, 1000])
@pytest.mark.parametrize("rows_per_partition", [1, 10, 33, 1000])
def test_parquet_partitions_hold_every_row_in_order(
    tmp_path: Path, row_group_size: int, rows_per_partition: int
) -> None:
    """Whatever the row groups are."""
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=row_group_size)
    plan = make_plan(find_files(tmp_path), rows_per_partition=rows_per_partition)
    assert read_all(plan) == ROWS
    assert plan.num_rows == sum(partition.num_rows or 0 for partition in plan.partitions) == 100


@pytest.mark.parametrize("scan_input", ["full", "sample"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("end", ["\n", "", "\n\n"])
def test_jsonl_partitions_hold_every_row_in_order(tmp_path: Path, suffix: str, end: str, scan_input: str) -> None:
    """With and without a newline at the end, plain and compressed."""
    write_jsonl(tmp_path / f"a{suffix}", ROWS, end)
    plan = make_plan(find_files(tmp_path), rows_per_partition=9, scan_input=scan_input)
    assert read_all(plan) == ROWS


@pytest.mark.parametrize("rows_per_partition", [1, 100, 5000])
def test_large_jsonl_is_cut_by_bytes_and_loses_nothing(tmp_path: Path, rows_per_partition: int) -> None:
    """A file beyond the sample has partitions whose rows only reading tells."""
    rows = [{"id": i, "text": "y" * 997} for i in range(6000)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    plan = make_plan(find_files(tmp_path), rows_per_partition=max(rows_per_partition, 50), scan_input="sample")
    assert not plan.is_exact
    assert read_all(plan, 1000) == rows


@pytest.mark.parametrize(("num_rows", "num_partitions"), [(900, 1), (2_000, 2), (100_000, 64), (1_000_000, 100)])
def test_default_partitions_are_about_64_of_a_fair_size(tmp_path: Path, num_rows: int, num_partitions: int) -> None:
    """A thousand rows at least, as each costs a commit, and ten thousand at most."""
    pq.write_table(pa.table({"i": range(num_rows)}), tmp_path / "a.parquet")
    assert len(make_plan(find_files(tmp_path)).partitions) == num_partitions


def test_types_come_from_all_lines(tmp_path: Path) -> None:
    """Integers widen, a field missing at first is there, one that is always null is a string, dates stay text."""
    write_jsonl(tmp_path / "a.jsonl", [{"a": 1, "n": None, "d": "2020-01-01"}, {"a": 1.5, "b": {"c": [1]}}])
    plan = make_plan(find_files(tmp_path))
    types = {field.name: str(field.type) for field in plan.schema}
    assert types == {"a": "double", "n": "string", "d": "string", "b": "struct<c: list<item: int64>>"}
    assert read_all(plan)[1] == {"a": 1.5, "n": None, "d": None, "b": {"c": [1]}}


def test_files_with_different_columns_are_one_dataset(tmp_path: Path) -> None:
    """A column that a file lacks is null there."""
    pq.write_table(pa.table({"a": [1]}), tmp_path / "1.parquet")
    write_jsonl(tmp_path / "2.jsonl", [{"b": "x"}])
    assert read_all(make_plan(find_files(tmp_path))) == [{"a": 1, "b": None}, {"a": None, "b": "x"}]


def test_an_input_without_rows_is_one_empty_partition(tmp_path: Path) -> None:
    """The output has the columns all the same."""
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    plan = make_plan(find_files(tmp_path))
    assert len(plan.partitions) == 1
    assert read_all(plan) == []


def test_a_broken_line_is_named_before_anything_is_paid(tmp_path: Path) -> None:
    """File, line and the line's beginning."""
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2\n')
    with pytest.raises(InputError, match=r"a\.jsonl', line 3, is not JSON.*\{\"a\": 2"):
        make_plan(find_files(tmp_path))


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    """A bare list is no row."""
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n[1]\n')
    with pytest.raises(InputError, match=r"line 2, is not a JSON object"):
        make_plan(find_files(tmp_path))


def test_values_without_a_common_type_are_refused(tmp_path: Path) -> None:
    """The message names the field."""
    write_jsonl(tmp_path / "a.jsonl", [{"a": 1}, {"a": "x"}])
    with pytest.raises(InputError, match="field 'a' have no common type"):
        make_plan(find_files(tmp_path))


def test_a_surprise_beyond_the_sample_names_its_line(tmp_path: Path) -> None:
    """And says which setting would have found it."""
    write_jsonl(tmp_path / "a.jsonl", [{"a": 1, "t": "z" * 1000}] * 5000 + [{"a": "no", "t": ""}])
    plan = make_plan(find_files(tmp_path), scan_input="sample")
    with pytest.raises(InputError, match=r"line 5001, has \"no\" in field 'a', which is no int64.*scan_input: full"):
        read_all(plan, 1000)


def test_half_a_parquet_file_is_refused(tmp_path: Path) -> None:
    """A file still being written has no footer."""
    pq.write_table(pa.table({"a": range(1000)}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"a\.parquet': .*has no footer"):
        make_plan(find_files(tmp_path))


def test_half_a_gzip_file_is_refused(tmp_path: Path) -> None:
    """A stream that was cut off is named."""
    write_jsonl(tmp_path / "a.jsonl.gz", ROWS)
    data = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cannot read .*a\.jsonl\.gz"):
        make_plan(find_files(tmp_path))


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """In a file of text; Parquet may have it."""
    (tmp_path / "a.csv").write_text("a,a\n1,2\n")
    with pytest.raises(InputError, match="more than one column 'a'"):
        make_plan(find_files(tmp_path))


def test_how_much_was_looked_at_is_told(tmp_path: Path) -> None:
    """Of all files of text together, up to all of it; of packed ones as they lie there."""
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl.gz", ROWS)
    (tmp_path / "c.csv").write_text("id,text\n1,a\n2,b\n")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "d.parquet")
    paths = sorted(tmp_path.iterdir())
    told: list[tuple[int, int]] = []
    make_plan(find_files(paths), on_scan=lambda *numbers: told.append(numbers))
    size = sum(path.stat().st_size for path in paths if path.suffix != ".parquet")
    assert told[-1] == (size, size)
    assert [num for num, _ in told] == sorted(num for num, _ in told)
