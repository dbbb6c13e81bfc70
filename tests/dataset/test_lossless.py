"""Nothing of a column is lost on the way through: every reader sees the output's columns as it sees the input's."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_matrix import MATRIX
from parquet_readers import READERS, view

from nemo_llm_stage import InputError
from nemo_llm_stage.dataset import parquet_footer, thrift
from nemo_llm_stage.run import verify_output
from nemo_llm_stage.testing import Fault


@pytest.mark.parametrize("write", MATRIX, ids=lambda write: write.__name__)
def test_every_reader_sees_the_input_columns_unchanged(job: Any, tmp_path: Path, write: Callable[[Path], None]) -> None:
    """Types, metadata and values, whichever library wrote them and whichever reads them."""
    source = tmp_path / "source.parquet"
    write(source)
    job.run(input=source)
    columns = pq.read_metadata(source).schema.to_arrow_schema().names
    (output,) = (job.folder / "out").glob("part-*.parquet")
    assert pq.read_metadata(output).schema.to_arrow_schema().names[: len(columns)] == columns
    for name, reader in READERS.items():
        assert view(reader, output, columns) == view(reader, source, columns), name
    assert verify_output(str(job.folder / "out"), compares_rows=True).problems == []


def test_no_extension_type_is_made_of_what_a_file_names(job: Any, tmp_path: Path) -> None:
    """Making one may run code of the file's; its bytes go through."""
    made: list[str] = []

    class Spy(pa.ExtensionType):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(pa.int64(), "acme.spy")

        def __arrow_ext_serialize__(self) -> bytes:
            return b"payload"

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Spy:
            made.append(serialized.decode())
            return cls()

    source = tmp_path / "source.parquet"
    spies = pa.ExtensionArray.from_storage(Spy(), pa.array([1, 2]))
    pq.write_table(pa.table({"spy": spies, "text": ["a", "b"]}), source)
    pa.register_extension_type(Spy())
    try:
        job.run(input=source)
        assert made == []
        (output,) = (job.folder / "out").glob("part-*.parquet")
        assert pq.read_schema(output).field("spy").type == Spy()
    finally:
        pa.unregister_extension_type("acme.spy")


def test_a_logical_type_that_arrow_does_not_know_is_carried(job: Any, tmp_path: Path) -> None:
    """Of any number in Parquet's list, e.g. GEOMETRY (17)."""
    source = tmp_path / "source.parquet"
    pq.write_table(pa.table({"shape": [b"\x01"], "text": ["a"]}), source, store_schema=False)
    byte_array, geometry = b"\x0c", b"\x0c\x22\x00\x00"
    annotation = {"shape": {0: {1: byte_array, 10: geometry}}}
    parquet_footer.annotate(source, annotation)
    job.run(input=source)
    (output,) = (job.folder / "out").glob("part-*.parquet")
    with output.open("rb") as file:
        assert parquet_footer.lost_types(parquet_footer.read_footer(file) or b"") == annotation


def test_text_without_the_older_annotation_is_seen_as_before(job: Any, tmp_path: Path) -> None:
    """DuckDB, for one, sees bytes."""
    source = tmp_path / "source.parquet"
    pq.write_table(pa.table({"text": ["a"], "day": [dt.date(2024, 1, 2)]}), source, store_schema=False)
    logical_alone = {"text": {0: {1: b"\x0c", 10: b"\x1c\x00\x00"}}, "day": {0: {1: b"\x02", 10: b"\x6c\x00\x00"}}}
    parquet_footer.annotate(source, logical_alone)
    job.run(input=source)
    (output,) = (job.folder / "out").glob("part-*.parquet")
    with output.open("rb") as file:
        found = parquet_footer.lost_types(parquet_footer.read_footer(file) or b"")
    assert {name: found[name] for name in logical_alone} == logical_alone
    for name, reader in READERS.items():
        assert view(reader, output, ["text", "day"]) == view(reader, source, ["text", "day"]), name


@pytest.fixture
def twice(tmp_path: Path) -> Path:
    """A file with a column name twice; the second one has a logical type that Arrow would drop."""
    names = ["text", "a", "a", "a_1"]
    table = pa.Table.from_arrays([["x", "y"], [1, 2], [b"\x01", None], [True, False]], names=names)
    pq.write_table(table, source := tmp_path / "source.parquet", store_schema=False)
    parquet_footer.annotate(source, {"a_2": {0: {1: b"\x0c", 10: b"\x0c\x22\x00\x00"}}})
    return source


def test_a_column_name_twice_stays_twice(job: Any, twice: Path) -> None:
    """By its place, through a retry of failed rows too; in prompts, the second one has a name of its own."""
    job.server.faults = [Fault(400, contains="y 2")]
    job.run(job.stage(prompt="Say {{ text }} {{ a }}"), input=twice, max_failed_rows=None)
    job.server.faults = []
    job.run(job.stage(prompt="Say {{ text }} {{ a }}"), input=twice, max_failed_rows=None)
    job.retry(job.stage(prompt="Say {{ text }} {{ a }}"))
    (output,) = (job.folder / "out").glob("part-*.parquet")
    with pq.ParquetFile(twice) as before, pq.ParquetFile(output) as after:
        assert after.schema_arrow.names[:4] == before.schema_arrow.names
        assert after.read().columns[:4] == before.read().columns
    assert view(READERS["duckdb"], output, ["a", "a_1"]) == view(READERS["duckdb"], twice, ["a", "a_1"])
    with twice.open("rb") as before, output.open("rb") as after:
        found = [parquet_footer.lost_types(parquet_footer.read_footer(file) or b"") for file in (before, after)]
    assert found[0] == found[1] != {}
    assert verify_output(str(job.folder / "out"), compares_rows=True).problems == []


def test_a_column_name_twice_is_two_keys_in_lines(job: Any, twice: Path) -> None:
    """JSON has no key twice."""
    job.run(input=twice, output_format="jsonl")
    assert [(row["a"], row["a_1"]) for row in job.rows()] == [(1, True), (2, False)]
    assert {"a", "a_1", "a_2"} < set(job.rows()[0])


def add_empty_struct(path: Path, group: int) -> None:
    """Add a struct ``d`` without fields to the last group of a file's schema, the element with number `group`."""
    with path.open("rb") as file:
        footer = parquet_footer.read_footer(file) or b""
    fields = {key: (wire, footer[start:stop]) for key, wire, start, stop in thrift.fields_of(footer, 0)}
    num, place = thrift.list_header(fields[2][1], 0)
    elements = []
    for _ in range(num):
        found = list(thrift.fields_of(fields[2][1], place))
        elements.append({key: (wire, fields[2][1][start:stop]) for key, wire, start, stop in found})
        place = found[-1][3] + 1
    elements[group][5] = (5, bytes([elements[group][5][1][0] + 2]))
    elements.append({3: (5, b"\x02"), 4: (8, b"\x01d"), 5: (5, b"\x00")})
    fields[2] = (9, bytes([len(elements) << 4 | 12]) + b"".join(map(thrift.encode, elements)))
    data = path.read_bytes()[: -len(footer) - 8]
    path.write_bytes(data + parquet_footer.as_file(thrift.encode(fields))[4:])


def test_a_column_name_twice_of_arrow_stays_twice(job: Any) -> None:
    """As Parquet has it too."""
    table = pa.Table.from_arrays([["x", "y"], [1, 2], [True, False]], names=["text", "a", "a"])
    with pa.ipc.new_file(job.folder / "source.arrow", table.schema) as file:
        file.write_table(table)
    job.run(input=job.folder / "source.arrow")
    (output,) = (job.folder / "out").glob("part-*.parquet")
    written = pq.ParquetFile(output).read()
    assert (written.schema.names[:3], written.columns[:3]) == (table.schema.names, table.columns)
    assert verify_output(str(job.folder / "out"), compares_rows=True).problems == []


def test_a_struct_without_fields_is_null(job: Any, tmp_path: Path) -> None:
    """Parquet holds nothing of its values, and no library writes one: pyarrow refuses to."""
    source = tmp_path / "source.parquet"
    pq.write_table(pa.table({"text": ["a"], "b": [{"c": 1}]}), source, store_schema=False)
    add_empty_struct(source, 2)
    with pytest.raises(InputError, match=r"'b' .* has a struct without fields beside other fields"):
        job.run(input=source)
    pq.write_table(pa.table({"text": ["a"]}), source, store_schema=False)
    add_empty_struct(source, 0)
    assert str(pq.read_schema(source).field("d").type) == "struct<>"
    with pytest.raises(pa.ArrowNotImplementedError, match="no child field"):
        pq.write_table(pa.table({"empty": pa.array([{}], pa.struct([]))}), tmp_path / "empty.parquet")
    job.run(input=source)
    (output,) = (job.folder / "out").glob("part-*.parquet")
    assert pq.read_table(output).select(["text", "d"]).to_pylist() == [{"text": "a", "d": None}]
    assert pq.read_table(source).to_pylist() == [{"text": "a", "d": None}]
    assert verify_output(str(job.folder / "out"), compares_rows=True).problems == []


def test_rows_without_columns_are_rows(job: Any) -> None:
    """A footer alone tells of them, as fastparquet writes it."""
    source = job.folder / "source.parquet"
    footer = {2: (9, b"\x1c" + thrift.encode({4: (8, b"\x01a"), 5: (5, b"\x00")})), 1: (5, b"\x02"), 3: (6, b"\x04")}
    footer[4] = (9, b"\x1c" + thrift.encode({1: (9, b"\x0c"), 2: (6, b"\x00"), 3: (6, b"\x04")}))
    source.write_bytes(parquet_footer.as_file(thrift.encode(footer)))
    assert pq.read_metadata(source).num_rows == pq.read_table(source).num_rows == 2
    job.run(job.stage(prompt="Say yes"), input=source)
    assert [set(row) for row in job.rows()] == [{"x", "x_error", "x_meta", "x_skipped"}] * 2
    assert verify_output(str(job.folder / "out"), compares_rows=True).problems == []
