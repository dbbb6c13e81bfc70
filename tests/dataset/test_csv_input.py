"""CSV and TSV as input: types that lose nothing, partitions of whole records, errors that name the line."""

from __future__ import annotations

import csv
import gzip
import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage.dataset.bad_input import BadInput
from nemo_llm_stage.dataset.files import find_files
from nemo_llm_stage.dataset.plan import Plan, make_plan
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.errors import InputError


def plan_of(path: Path, text: str | bytes | None = None, **options: Any) -> Plan:
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return make_plan(find_files(path), **options)


def read_all(plan: Plan, **options: Any) -> list[dict[str, Any]]:
    parts = (read_partition(part, plan.schema, rows_per_chunk=7, **options) for part in plan.partitions)
    tables = [table for tables in parts for table in tables]
    assert all(table.schema == plan.schema and table.num_rows <= 7 for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def written(rows: list[list[Any]], **dialect: Any) -> str:
    out = io.StringIO()
    csv.writer(out, **dialect).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "0", ""], pa.int64()),
        (["9223372036854775807"], pa.int64()),
        (["9223372036854775808"], pa.string()),
        (["007", "8"], pa.string()),
        (["-0"], pa.float64()),
        (["1", "2.5", "-1e-3"], pa.float64()),
        (["0.1", "1.10", "0.30000000000000004"], pa.float64()),
        (["9007199254740993", "1.5"], pa.string()),
        (["3.14159265358979323846"], pa.string()),
        (["1e999"], pa.string()),
        (["true", "False"], pa.bool_()),
        (["true", "1"], pa.string()),
        (["+1"], pa.string()),
        ([" 1"], pa.string()),
        (["1", '""'], pa.string()),
        (["2024-01-02"], pa.string()),
        (["NA", "1"], pa.string()),
        (["nan"], pa.string()),
        (["", ""], pa.string()),
    ],
)
def test_a_type_is_taken_only_where_it_loses_nothing(tmp_path: Path, values: list[str], kind: pa.DataType) -> None:
    """Zeros in front, digits beyond a double, words for missing values stay as they stand."""
    text = "id,v\n" + "".join(f"{number},{value}\n" for number, value in enumerate(values))
    plan = plan_of(tmp_path / "a.csv", text)
    assert plan.schema.field("v").type == kind
    rows = read_all(plan)
    for row, value in zip(rows, values, strict=True):
        if pa.types.is_string(kind):
            assert row["v"] == (None if value == "" else value.strip('"'))
        else:
            expected = {"": None, "true": True, "False": False}.get(value, value)
            assert row["v"] == (pa.scalar(expected).cast(kind).as_py() if isinstance(expected, str) else expected)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
def test_partitions_hold_whole_records(tmp_path: Path, suffix: str) -> None:
    """Line ends, quotes and delimiters within values; every row once and in order."""
    rng = random.Random(7)
    rows = [[str(i), "".join(rng.choice('ab ,\t\n"\r') for _ in range(rng.randrange(9)))] for i in range(2000)]
    rows = [[number, value or None] for number, value in rows]
    text = written([["id", "v"], *rows], delimiter="\t" if suffix == ".tsv" else ",")
    data = gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode()
    plan = plan_of(tmp_path / f"a{suffix}", data, rows_per_partition=100)
    assert len(plan.partitions) == (1 if suffix.endswith(".gz") else 20)
    assert (plan.num_rows, plan.is_exact) == (2000, True)
    assert [[str(row["id"]), row["v"]] for row in read_all(plan)] == rows


def test_quotes_in_the_middle_of_a_value_are_text(tmp_path: Path) -> None:
    """As inches are written; also where they come in odd numbers."""
    lines = [f'{i},{i}" pipe' if i % 3 else f'{i},"a ""b""\n{i}"' for i in range(500)]
    plan = plan_of(tmp_path / "a.csv", "id,v\n" + "\n".join(lines), rows_per_partition=50)
    expected = [f'{i}" pipe' if i % 3 else f'a "b"\n{i}' for i in range(500)]
    assert [row["v"] for row in read_all(plan)] == expected


def test_blank_lines_and_windows_line_ends_are_no_rows(tmp_path: Path) -> None:
    """A byte order mark is no part of a name."""
    plan = plan_of(tmp_path / "a.csv", b"\xef\xbb\xbfa,b\r\n1,x\r\n\r\n2,y\r\n\r\n", rows_per_partition=1)
    assert [part.num_rows for part in plan.partitions] == [1, 1]
    assert read_all(plan) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


def test_several_files_have_one_schema(tmp_path: Path) -> None:
    """The type that the values of all have; a column that one lacks is null there."""
    (tmp_path / "a.csv").write_text("id,n\n1,2\n")
    (tmp_path / "b.csv").write_text("n,id,more\nx,3,4.5\n")
    (tmp_path / "c.csv").write_text("id\n")
    plan = plan_of(tmp_path)
    assert [str(field.type) for field in plan.schema] == ["int64", "string", "double"]
    assert read_all(plan) == [{"id": 1, "n": "2", "more": None}, {"id": 3, "n": "x", "more": 4.5}]


def test_csv_goes_with_parquet(tmp_path: Path) -> None:
    """Whole numbers become floats where they fit, which is proved."""
    pq.write_table(pa.table({"n": [0.5]}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("n\n2\n")
    paths = [tmp_path / "a.parquet", tmp_path / "b.csv"]
    assert read_all(make_plan(find_files(paths))) == [{"n": 0.5}, {"n": 2.0}]
    (tmp_path / "b.csv").write_text("n\n9007199254740993\n")
    with pytest.raises(InputError, match=r"'n' is int64 in .*b.csv' and would be double"):
        make_plan(find_files(paths))


def test_declared_types_are_proved(tmp_path: Path) -> None:
    """A value that is none stops the job before it starts, by its line."""
    types = {"day": pa.date32(), "n": pa.string()}
    plan = plan_of(tmp_path / "a.csv", "day,n\n2024-01-02,1\n,2\n", column_types=types)
    assert [(str(row["day"]), row["n"]) for row in read_all(plan)] == [("2024-01-02", "1"), ("None", "2")]
    with pytest.raises(InputError, match=r"a.csv', line 4: .*invalid value 'soon'"):
        plan_of(tmp_path / "a.csv", 'day,n\n2024-01-02,"1\n"\nsoon,2\n', column_types=types)


BROKEN = "a,b\n1,x\n2\n3,y,z\n4,w\n"


def test_a_broken_record_stops_the_job_by_its_line(tmp_path: Path) -> None:
    """Before anything is paid for."""
    with pytest.raises(InputError, match=r"a.csv', line 3, has 1 values for 2 columns: 2"):
        plan_of(tmp_path / "a.csv", BROKEN)


def test_broken_records_may_be_left_out(tmp_path: Path) -> None:
    """They are told of with file and line, and counted."""
    bad: list[BadInput] = []
    plan = plan_of(tmp_path / "a.csv", BROKEN, on_bad=bad.append)
    assert [row["a"] for row in read_all(plan, on_bad=bad.append)] == [1, 4]
    assert [(record.line, record.num_rows) for record in bad] == [(3, 1), (4, 1)]
    assert plan.num_rows == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is empty; the first line of a CSV file names its columns"),
        (b"a\n\xff\xfe\n", "line 2.*invalid UTF8"),
        (b"a,a\n1,2\n", "'a'"),
        (b'a,b\n1,"x\n2,y\n', "line 2 or after: where a record ends cannot be told"),
        (b"a,b\n1,x\r2,y\r", "line 2 or after"),
    ],
)
def test_what_is_no_csv_is_refused(tmp_path: Path, text: bytes, words: str) -> None:
    """By file and line."""
    with pytest.raises(InputError, match=words):
        plan_of(tmp_path / "a.csv", text)


def test_a_table_beside_data_describes_it(tmp_path: Path) -> None:
    """A folder of Parquet is read without its CSV, which is told."""
    from nemo_llm_stage.dataset.files import find_input

    pq.write_table(pa.table({"n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "stats.csv").write_text("n\n2\n")
    (tmp_path / "info.json").write_text("{}")
    found = find_input(tmp_path)
    assert [Path(file.path).name for file in found.files] == ["a.parquet"]
    assert found.notices == (
        (
            "ignored in the input: 1 with the ending .csv beside other files, "
            "1 with the ending .json beside other files."
        ),
    )
