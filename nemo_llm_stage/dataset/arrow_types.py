"""
Arrow types without what may carry code: extension types and metadata, at any depth.

Reading an extension type can mean to unpickle what the file says. Knows types; knows nothing of files.
"""

from __future__ import annotations

import pyarrow as pa


def storage_schema(schema: pa.Schema) -> pa.Schema:
    """Return `schema` with every type as it is stored, and without metadata."""
    return pa.schema([_storage_field(field) for field in schema])


def storage_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that values of `kind` are stored as; of nested types, all the way down."""
    if isinstance(kind, pa.BaseExtensionType):
        return storage_type(kind.storage_type)
    if pa.types.is_struct(kind):
        return pa.struct([_storage_field(field) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(storage_type(kind.key_type), storage_type(kind.item_type), keys_sorted=kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_storage_field(kind.value_field), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(_storage_field(kind.value_field))
    if pa.types.is_list(kind):
        return pa.list_(_storage_field(kind.value_field))
    return kind


def _storage_field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, storage_type(field.type))
