"""
Parquet files opened so that what is in them is data: no extension type is made, whatever a file names.

Knows files and their schemas; knows nothing of partitions.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.dataset import parquet_footer
from nemo_llm_stage.dataset.arrow_types import map_fields
from nemo_llm_stage.dataset.parquet_footer import EXTENSION_KEY, HIDDEN_KEY, Annotation, unique_names

ANNOTATIONS_KEY = b"nemo_llm_stage:parquet"
"""Metadata of a field while a job runs: the logical types that Arrow has no type for, as JSON."""

PLAIN_KEY = b"nemo_llm_stage:plain"
"""Metadata of a schema while a job runs: no file holds Arrow's own schema, which readers take before Parquet's."""

INT96_KEY = b"nemo_llm_stage:int96"
"""Metadata of a schema while a job runs: INT96 columns are read as microseconds, as nanoseconds do not reach."""

NAME_KEY = b"nemo_llm_stage:name"
"""Metadata of a field while a job runs: its name in the files, where an earlier column has it too."""

EMPTY_KEY = b"nemo_llm_stage:empty"
"""Metadata of a field while a job runs: it is made of structs without fields, of which Parquet holds nothing: null."""

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


def has_int96(metadata: pq.FileMetaData) -> bool:
    """Whether a column of the file is of the old type of timestamps."""
    return any(metadata.schema.column(number).physical_type == "INT96" for number in range(metadata.num_columns))


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
    schema = map(_without_empty_struct, _with_stored_dates(file))
    names = parquet_footer.names_of(footer)
    fields = [_described(field, name, found.get(field.name)) for field, name in zip(schema, names, strict=True)]
    metadata = dict(file.schema_arrow.metadata or {})
    if b"ARROW:schema" not in (file.metadata.metadata or {}):
        metadata[PLAIN_KEY] = b""
    return pa.schema(fields, metadata=metadata), file


def written_schema(schema: pa.Schema) -> pa.Schema:
    """Return `schema` as it stands in a file: without what is known only while a job runs, a name twice if it was."""
    names = _written_names(schema)

    def shown(field: pa.Field) -> pa.Field:
        metadata = {
            key: value for key, value in (field.metadata or {}).items() if not key.startswith(b"nemo_llm_stage:")
        }
        if HIDDEN_KEY in metadata:
            metadata[EXTENSION_KEY] = metadata.pop(HIDDEN_KEY)
        return field.with_metadata(metadata or None) if field.metadata else field

    metadata = {key: value for key, value in (schema.metadata or {}).items() if not key.startswith(b"nemo_llm_stage:")}
    fields = [field.with_name(name) for field, name in zip(map_fields(schema, shown), names, strict=True)]
    return pa.schema(fields, metadata=metadata or None)


def with_unique_names(schema: pa.Schema) -> pa.Schema:
    """Return `schema` with `parquet_footer.unique_names` for its columns, and their names in the file beside these."""
    if len(set(schema.names)) == len(schema):
        return schema
    names = unique_names(schema.names)
    fields = [_described(field.with_name(name), field.name, None) for field, name in zip(schema, names, strict=True)]
    return pa.schema(fields, metadata=schema.metadata)


def _written_names(schema: pa.Schema) -> list[str]:
    names = [(field.metadata or {}).get(NAME_KEY, field.name.encode()).decode() for field in schema]
    return names if unique_names(names) == schema.names else list(schema.names)


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
        name: {
            int(number): {int(key): bytes.fromhex(value) for key, value in carried.items()}
            for number, carried in orjson.loads(field.metadata[ANNOTATIONS_KEY]).items()
        }
        for field, name in zip(schema, unique_names(_written_names(schema)), strict=True)
        if field.metadata and ANNOTATIONS_KEY in field.metadata
    }


def _open(raw: Any, footer: bytes | None, options: dict[str, Any]) -> pq.ParquetFile:
    raw.seek(0)
    if footer is not None:
        options = {**options, "metadata": _parse(footer)}
    return pq.ParquetFile(raw, arrow_extensions_enabled=False, **options)


def _parse(footer: bytes) -> pq.FileMetaData:
    hidden = parquet_footer.hide_extensions(footer)
    metadata = pq.read_metadata(pa.BufferReader(parquet_footer.as_file(hidden)))
    names = metadata.schema.to_arrow_schema().names
    if len(set(names)) == len(names):
        return metadata
    return pq.read_metadata(pa.BufferReader(parquet_footer.as_file(parquet_footer.with_unique_names(hidden))))


def _with_stored_dates(file: pq.ParquetFile) -> pa.Schema:
    """Return the schema with date64 where the file says so, which polars sees there; Arrow reads date32 from it."""
    text = (file.metadata.metadata or {}).get(b"ARROW:schema")
    schema = file.schema_arrow
    if text is None or not any(map(pa.types.is_date32, schema.types)):
        return schema
    stored = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
    if len(stored) != len(schema):
        return schema
    fields = [
        field.with_type(pa.date64()) if pa.types.is_date32(field.type) and pa.types.is_date64(kind) else field
        for field, kind in zip(schema, stored.types, strict=True)
    ]
    return pa.schema(fields, metadata=schema.metadata)


def _without_empty_struct(field: pa.Field) -> pa.Field:
    """Return a column as it is, but null where it consists of structs without fields, as Arrow reads it."""
    leaves = list(_leaves(field.type))
    if not any(map(_is_empty_struct, leaves)):
        return field
    if not all(map(_is_empty_struct, leaves)):
        raise pa.ArrowInvalid(f"column {field.name!r} ({field.type}) has a struct without fields beside other fields")
    return pa.field(field.name, pa.null(), metadata={EMPTY_KEY: b""})


def _leaves(kind: pa.DataType) -> Iterator[pa.DataType]:
    if not kind.num_fields:
        yield kind
    for number in range(kind.num_fields):
        yield from _leaves(kind.field(number).type)


def _is_empty_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and not kind.num_fields


def _described(field: pa.Field, name: str, found: dict[int, Annotation] | None) -> pa.Field:
    """Return a field with what the file says of it beside its type."""
    metadata = dict(field.metadata or {})
    if found is not None:
        plain = {
            str(number): {str(key): value.hex() for key, value in carried.items()} for number, carried in found.items()
        }
        metadata[ANNOTATIONS_KEY] = orjson.dumps(plain)
    if name != field.name:
        metadata[NAME_KEY] = name.encode()
    return field.with_metadata(metadata) if metadata else field
