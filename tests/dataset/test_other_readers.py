"""`verify --rows` reads Parquet by other readers than a job's: a fault in reading would be seen."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.compare import first_misplaced_in_duckdb
from nemo_llm_stage.dataset.files import find_files
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.other_readers import read_otherwise
from nemo_llm_stage.dataset.plan import Partition, make_plan
from nemo_llm_stage.dataset.read import read_partition

TEXTS = [f"row {i % 1700}" for i in range(5000)]
TABLE = pa.table(
    {
        "n": range(5000),
        "text": TEXTS,
        "delta": TEXTS,
        "lengths": TEXTS,
        "plain": TEXTS,
        "nested": [[{"a": 1.5}]] * 5000,
    }
)


@pytest.fixture
def partitions(tmp_path: Path) -> tuple[Partition, ...]:
    """Of a file whose row groups are no multiples of theirs, and with texts of other encodings."""
    encodings = {"delta": "DELTA_BYTE_ARRAY", "lengths": "DELTA_LENGTH_BYTE_ARRAY", "plain": "PLAIN"}
    pq.write_table(
        TABLE,
        tmp_path / "in.parquet",
        row_group_size=1100,
        use_dictionary=["text"],
        column_encoding=encodings,
        data_page_size=1000,
    )
    return make_plan(find_files(tmp_path / "in.parquet"), rows_per_partition=1300).partitions


def test_both_ways_through_arrow_give_the_same_rows(partitions: tuple[Partition, ...]) -> None:
    """Of each partition, whatever the batches."""
    for partition in partitions:
        as_a_job = pa.concat_tables(read_partition(partition, TABLE.schema, rows_per_chunk=64))
        otherwise = pa.concat_tables(read_otherwise(partition, TABLE.schema))
        assert otherwise.equals(as_a_job)


@pytest.mark.parametrize("wrong", [None, 0, 1234])
def test_duckdb_sees_a_row_that_was_read_wrongly(
    tmp_path: Path, partitions: tuple[Partition, ...], wrong: int | None
) -> None:
    """And none where all are right, though the output has rows of its own types and more columns."""
    pytest.importorskip("duckdb")
    partition = partitions[1]
    table = TABLE.slice(partition.start, 1300)
    texts = table.column("text").to_pylist()
    if wrong is not None:
        texts[wrong] = "another"
    columns = {"n": table.column("n").cast(pa.float64()), "text": texts, "nested": table.column("nested"), "x": texts}
    made = pa.table(columns)
    output = OutputFolder(str(tmp_path / "out"))
    output.check_writable()
    output.write_job({"id": "j", "stage": {"output_column": "x"}})
    with output.writer(made.schema, "j") as writer:
        writer.write(made)
        writer.commit(output.name_of(partition), Counters(num_rows=1300))
    name = output.name_of(partition)
    assert first_misplaced_in_duckdb(output, name, partition, TABLE.schema, repeats=False) == wrong
