"""
Files of Arrow's IPC format (Feather), opened so that what is in them is data: no extension type is made.

A file is one of two kinds: with a footer, so that each record batch can be read by itself, or a stream, which is read
from its start. Knows files; knows nothing of partitions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from nemo_llm_stage.dataset.arrow_types import with_schema
from nemo_llm_stage.dataset.parquet_file import with_unique_names
from nemo_llm_stage.dataset.parquet_footer import EXTENSION_KEY, HIDDEN_KEY
from nemo_llm_stage.dataset.storage import open_filesystem

_MAGIC = b"ARROW1"
_ENDLESS = 1 << 62


class ArrowFile:
    """
    An open file.

    Args:
        path: As fsspec takes it. Of a local file, only the parts that are read come into memory.

    Attributes:
        schema: Its columns, each with a name of its own; extension types have their storage types, and stand in the
            metadata as `HIDDEN_KEY`.

    Raises:
        OSError: The file cannot be read.
        pyarrow.ArrowException: It is no Arrow file.
    """

    def __init__(self, path: str) -> None:
        fs, inner = open_filesystem(path)
        self._raw = pa.memory_map(inner) if isinstance(fs, LocalFileSystem) and fs.size(inner) else fs.open(inner, "rb")
        try:
            self._is_stream = self._raw.read(len(_MAGIC)) != _MAGIC
            self._reader = self._open()
        except BaseException:
            self._raw.close()
            raise
        self.schema = with_unique_names(hide_extensions(self._reader.schema))

    def starts(self) -> Sequence[int]:
        """Return the row that each record batch starts at, and the number of rows; a stream is taken as one batch."""
        if self._is_stream:
            return (0, _ENDLESS)
        first_column = self._open(included_fields=[0] if len(self.schema) else None)
        sizes = (first_column.get_batch(number).num_rows for number in range(first_column.num_record_batches))
        return list(itertools.accumulate(sizes, initial=0))

    def num_rows(self) -> int:
        """Return the number of rows; a stream is read for it."""
        return sum(batch.num_rows for batch in self.batches(0)) if self._is_stream else self.starts()[-1]

    def batches(self, first: int) -> Iterator[pa.RecordBatch]:
        """Yield the record batches from the one with number `first` on; of a stream all."""
        reader = self._open()
        batches = iter(reader) if self._is_stream else map(reader.get_batch, range(first, reader.num_record_batches))
        for batch in batches:
            yield with_schema(batch, self.schema)

    def close(self) -> None:
        """Close it."""
        self._raw.close()

    def _open(self, **options: Any) -> Any:
        self._raw.seek(0)
        how = pa.ipc.IpcReadOptions(**options)
        return (pa.ipc.open_stream if self._is_stream else pa.ipc.open_file)(self._raw, options=how)


def hide_extensions(schema: pa.Schema) -> pa.Schema:
    """Return `schema` with storage types in place of extension types, whose names stand under `HIDDEN_KEY`."""
    text = schema.serialize().to_pybytes()
    return pa.ipc.read_schema(pa.py_buffer(text.replace(EXTENSION_KEY, HIDDEN_KEY)))
