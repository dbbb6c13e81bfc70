"""Nothing of a column is lost on the way through: every reader sees the output's columns as it sees the input's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_matrix import MATRIX
from parquet_readers import READERS, view

from nemo_llm_stage.dataset import parquet_footer
from nemo_llm_stage.run import verify_output


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
