"""
Columns under the names that a table has for them, where its files have others: Delta's column mapping, Iceberg's ids.

A field of a table's schema says in its metadata how files know it. Pure: knows Arrow schemas.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from nemo_llm_stage.dataset.arrow_types import with_children, with_schema

SOURCE_NAME_KEY = b"nemo_llm_stage:source_name"
"""Metadata of a field while a job runs: its name in the files."""

SOURCE_ID_KEY = b"nemo_llm_stage:source_id"
"""Metadata of a field while a job runs: its id in the files, which stands there as `FILE_ID_KEY`."""

FILE_ID_KEY = b"PARQUET:field_id"

_NOBODYS = "\x00"
"""Begins the name of a field that the table does not have any more."""


def is_renamed(schema: pa.Schema) -> bool:
    """Whether the columns are those of a table whose files have other names for them; all or none are marked."""
    metadata = (schema.field(0).metadata or {}) if len(schema) else {}
    return SOURCE_NAME_KEY in metadata or SOURCE_ID_KEY in metadata


def has_ids(schema: pa.Schema) -> bool:
    """Whether the fields of a file have ids."""
    return any(FILE_ID_KEY in (field.metadata or {}) for field in schema)


def as_named(schema: pa.Schema, wanted: pa.Schema) -> pa.Schema:
    """Return the schema of a file with the names that `wanted` has for its fields, wherever they are nested."""
    return pa.schema(_named(schema, wanted), metadata=schema.metadata) if is_renamed(wanted) else schema


def with_names(batch: pa.RecordBatch, wanted: pa.Schema) -> pa.RecordBatch:
    """Return rows of a file with the names that `wanted` has for their fields; nothing is copied."""
    return with_schema(batch, as_named(batch.schema, wanted)) if is_renamed(wanted) else batch


def _named(fields: Iterable[pa.Field], wanted: Iterable[pa.Field]) -> list[pa.Field]:
    of_source = {_source(field): field for field in wanted}
    named = []
    for number, field in enumerate(fields):
        metadata = field.metadata or {}
        target = of_source.get((None, metadata.get(FILE_ID_KEY))) or of_source.get((field.name.encode(), None))
        if target is None:
            named.append(field.with_name(f"{_NOBODYS}{number}"))
        else:
            named.append(field.with_name(target.name).with_type(_named_type(field.type, target.type)))
    return named


def _source(field: pa.Field) -> tuple[bytes | None, bytes | None]:
    metadata = field.metadata or {}
    return metadata.get(SOURCE_NAME_KEY), metadata.get(SOURCE_ID_KEY)


def _named_type(kind: pa.DataType, wanted: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind) and pa.types.is_struct(wanted):
        return pa.struct(_named(kind, wanted))
    if pa.types.is_map(kind) and pa.types.is_map(wanted):
        key = kind.key_field.with_type(_named_type(kind.key_type, wanted.key_type))
        return pa.map_(key, kind.item_field.with_type(_named_type(kind.item_type, wanted.item_type)))
    if kind.num_fields == wanted.num_fields == 1:
        item = kind.field(0)
        return with_children(kind, [item.with_type(_named_type(item.type, wanted.field(0).type))])
    return kind
