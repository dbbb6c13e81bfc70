"""
Parquet files opened so that what is in them is data: no extension type is made, whatever a file names.

Knows files and their schemas; knows nothing of partitions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.dataset import parquet_footer
from nemo_llm_stage.dataset.arrow_types import map_fields
from nemo_llm_stage.dataset.parquet_footer import EXTENSION_KEY, HIDDEN_KEY, Annotation

ANNOTATIONS_KEY = b"nemo_llm_stage:parquet"
"""Metadata of a field while a job runs: the logical types that Arrow has no type for, as JSON."""

PLAIN_KEY = b"nemo_llm_stage:plain"
"""Metadata of a schema while a job runs: no file holds Arrow's own schema, which readers take before Parquet's."""

INT96_KEY = b"nemo_llm_stage:int96"
"""Metadata of a schema while a job runs: INT96 columns are read as microseconds, as nanoseconds do not reach."""

IN_MICROSECONDS = {"coerce_int96_timestamp_unit": "us"}


def read_options(schema: pa.Schema) -> dict[str, Any]:
    """Return the options of `open_parquet` by which a file's columns come in the types of `schema`."""
    return IN_MICROSECONDS if INT96_KEY in (schema.metadata or {}) else {}


def open_parquet(raw: Any, **options: Any) -> pq.ParquetFile:
    """
    Return the Parquet file `raw`, which is open for reading; every column has its storage type.

    Args:
        raw: A file that can be sought in.
        options: As of `pyarrow.parquet.ParquetFile`.

    Raises:
        OSError: It cannot be read.
        pyarrow.ArrowException: It is no Parquet file.
    """
    return _open(raw, parquet_footer.read_footer(raw), options)


def read_metadata(raw: Any) -> pq.FileMetaData:
    """Return the footer of the Parquet file `raw`, with storage types; raises as `open_parquet`."""
    footer = parquet_footer.read_footer(raw)
    return pq.read_metadata(raw) if footer is None else _parse(footer)


def schema_of(raw: Any, **options: Any) -> tuple[pa.Schema, pq.ParquetFile]:
    """
    Return the schema of a Parquet file with all that its columns carry beside their types, and the file.

    Field and schema metadata stand as in the file, extension types under `parquet_footer.HIDDEN_KEY`, and logical types
    that Arrow lacks under `ANNOTATIONS_KEY`.

    Raises:
        OSError: It cannot be read.
        pyarrow.ArrowException: It is no Parquet file.
    """
    footer = parquet_footer.read_footer(raw)
    file = _open(raw, footer, options)
    if footer is None:
        return file.schema_arrow, file
    found = parquet_footer.lost_types(footer)
    fields = [_annotated(field, found[field.name]) if field.name in found else field for field in file.schema_arrow]
    metadata = dict(file.schema_arrow.metadata or {})
    if b"ARROW:schema" not in (file.metadata.metadata or {}):
        metadata[PLAIN_KEY] = b""
    return pa.schema(fields, metadata=metadata), file


def written_schema(schema: pa.Schema) -> pa.Schema:
    """Return `schema` as it stands in a file: without what is known only while a job runs."""

    def shown(field: pa.Field) -> pa.Field:
        metadata = {
            key: value for key, value in (field.metadata or {}).items() if not key.startswith(b"nemo_llm_stage:")
        }
        if HIDDEN_KEY in metadata:
            metadata[EXTENSION_KEY] = metadata.pop(HIDDEN_KEY)
        return field.with_metadata(metadata or None) if field.metadata else field

    metadata = {key: value for key, value in (schema.metadata or {}).items() if not key.startswith(b"nemo_llm_stage:")}
    return map_fields(schema, shown).with_metadata(metadata or None)


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """
    Return a writer of a new file with the columns of `schema`, which has what `schema_of` gives.

    Raises:
        OSError: The file cannot be written.
    """
    is_plain = PLAIN_KEY in (schema.metadata or {})
    written = written_schema(schema)
    writer = pq.ParquetWriter(path, written, compression="zstd", store_schema=not is_plain, write_page_checksum=True)
    if is_plain and written.metadata:
        writer.add_key_value_metadata(written.metadata)
    return writer


def annotations_of(schema: pa.Schema) -> dict[str, dict[int, Annotation]]:
    """Return what `schema_of` found and `parquet_footer.annotate` writes: column → element → annotation."""
    return {
        field.name: {
            int(number): {int(key): bytes.fromhex(value) for key, value in carried.items()}
            for number, carried in orjson.loads(field.metadata[ANNOTATIONS_KEY]).items()
        }
        for field in schema
        if field.metadata and ANNOTATIONS_KEY in field.metadata
    }


def _open(raw: Any, footer: bytes | None, options: dict[str, Any]) -> pq.ParquetFile:
    raw.seek(0)
    if footer is not None:
        options = {**options, "metadata": _parse(footer)}
    return pq.ParquetFile(raw, arrow_extensions_enabled=False, **options)


def _parse(footer: bytes) -> pq.FileMetaData:
    return pq.read_metadata(pa.BufferReader(parquet_footer.as_file(parquet_footer.hide_extensions(footer))))


def _annotated(field: pa.Field, found: dict[int, Annotation]) -> pa.Field:
    plain = {
        str(number): {str(key): value.hex() for key, value in carried.items()} for number, carried in found.items()
    }
    return field.with_metadata({**(field.metadata or {}), ANNOTATIONS_KEY: orjson.dumps(plain)})
