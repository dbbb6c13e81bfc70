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
