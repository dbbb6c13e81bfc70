"""Arrow IPC files (Feather) as input: both kinds, any record batches, types carried through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage.dataset.cursor import Cursors
from nemo_llm_stage.dataset.files import find_files
from nemo_llm_stage.dataset.plan import Plan, make_plan
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.errors import InputError

TABLE = pa.table(
    {
        "id": range(1000),
        "text": [f"row {number}" for number in range(1000)],
        "label": pa.array(["a", "b"] * 500).dictionary_encode(),
        "nothing": pa.nulls(1000),
        "when": pa.array([1, None] * 500, pa.timestamp("ns", "Europe/Berlin")),
        "key": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"k" * 16] * 1000, pa.binary(16))),
        "nested": pa.array([[{"a": 1}], None] * 500),
    }
)


def write(path: Path, table: pa.Table = TABLE, num_rows: int = 300, codec: str | None = None) -> Path:
    options = pa.ipc.IpcWriteOptions(compression=codec)
    make = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
    with make(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=num_rows)
    return path


def read_all(plan: Plan, cursors: Cursors | None = None) -> pa.Table:
    parts = (read_partition(part, plan.schema, rows_per_chunk=64, cursors=cursors) for part in plan.partitions)
    tables = [table for tables in parts for table in tables]
    assert all(table.num_rows <= 64 for table in tables)
    return pa.concat_tables(tables)


@pytest.mark.parametrize("name", ["a.arrow", "a.feather", "a.ipc", "a.arrows"])
@pytest.mark.parametrize("codec", [None, "zstd"])
def test_every_row_comes_once_and_as_it_was(tmp_path: Path, name: str, codec: str | None) -> None:
    """Whatever the record batches; one reader serves all partitions of a file."""
    plan = make_plan(find_files(write(tmp_path / name, codec=codec)), rows_per_partition=90)
    assert [part.num_rows for part in plan.partitions] == [90] * 11 + [10]
    plain = TABLE.set_column(5, "key", TABLE.column("key").cast(pa.binary(16)))
    assert read_all(plan).equals(plain)
    cursors = Cursors(64)
    assert read_all(plan, cursors).equals(plain)
    cursors.close()


def test_a_feather_file_of_pandas_is_read(tmp_path: Path) -> None:
    """Compressed, as it is by default."""
    pyarrow.feather.write_feather(TABLE.select(["id", "text"]).to_pandas(), str(tmp_path / "a.feather"))
    assert read_all(make_plan(find_files(tmp_path))).column("text").to_pylist() == TABLE.column("text").to_pylist()


def test_an_input_without_rows_has_its_columns(tmp_path: Path) -> None:
    """As a Parquet file has."""
    plan = make_plan(find_files(write(tmp_path / "a.arrow", TABLE.slice(0, 0))))
    assert (plan.num_rows, plan.schema.names) == (0, TABLE.schema.names)
    assert all(
        table.num_rows == 0 for part in plan.partitions for table in read_partition(part, plan.schema, rows_per_chunk=9)
    )


def test_it_goes_with_parquet(tmp_path: Path) -> None:
    """One schema for both, proved."""
    write(tmp_path / "a.arrow", pa.table({"n": pa.array([1], pa.int32())}))
    pq.write_table(pa.table({"n": [0.5]}), tmp_path / "b.parquet")
    files = find_files([tmp_path / "a.arrow", tmp_path / "b.parquet"])
    assert read_all(make_plan(files)).column("n").to_pylist() == [1.0, 0.5]
    write(tmp_path / "a.arrow", pa.table({"n": pa.array([2**53 + 1])}))
    with pytest.raises(InputError, match=r"'n' is int64 in .*a.arrow' and would be double"):
        make_plan(find_files([tmp_path / "a.arrow", tmp_path / "b.parquet"]))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def null_in_a_dictionary(path: Path) -> None:
    write(path, pa.table({"d": pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a", None]))}))


def day_and_a_bit(path: Path) -> None:
    write(path, pa.table({"d": pa.array([86_400_001], pa.int64()).view(pa.date64())}))


def union(path: Path) -> None:
    write(path, pa.table({"u": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])}))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (damage, "cannot read .*a.arrow"),
        (null_in_a_dictionary, "column 'd' cannot be written as Parquet"),
        (day_and_a_bit, r"Parquet does not hold the values of column 'd' \(date64"),
        (union, "column 'u' is .*union.*, which no Parquet file can hold"),
        (lambda path: path.write_bytes(b""), "cannot read .*a.arrow"),
        (lambda path: path.write_bytes(b"no Arrow at all"), "cannot read .*a.arrow"),
    ],
)
def test_what_cannot_be_written_or_read_is_refused(tmp_path: Path, make: Any, words: str) -> None:
    """By the file's name."""
    make(write(tmp_path / "a.arrow"))
    with pytest.raises(InputError, match=words):
        make_plan(find_files(tmp_path))
