"""
The columns of all files of an input: of what a look into each has told, and of the tables that files are of.

Knows contents and tables; knows nothing of partitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from nemo_llm_stage.dataset.files import InputFile
from nemo_llm_stage.dataset.folder_columns import folder_fields
from nemo_llm_stage.dataset.json_types import declared_field
from nemo_llm_stage.dataset.look import Contents
from nemo_llm_stage.dataset.merge import SchemaMerger
from nemo_llm_stage.dataset.parquet_file import EMPTY_KEY, NAME_KEY
from nemo_llm_stage.dataset.renames import SOURCE_ID_KEY, as_named, has_ids, is_renamed
from nemo_llm_stage.dataset.tables import Table
from nemo_llm_stage.errors import InputError

TEXTS = ("jsonl", "csv")
"""Formats of text, which is cut by bytes; the others are cut by rows."""


def check_alone(files: Sequence[InputFile], tables: Sequence[Table]) -> None:
    """Refuse a table with columns that its files lack beside other files, which may have them."""
    for table in tables:
        if any(table.files.values()) and len(files) > len(table.files):
            raise InputError(f"the table {table.folder!r} has partition columns; read it alone.")


def in_table(content: Contents, table: Table | None) -> Contents:
    """
    Return the contents of a file under the names of its table, without the columns that this does not have.

    Raises:
        InputError: The file does not tell which of its columns is which, or lacks one that the table's log may hold.
    """
    if table is None:
        return content
    if is_renamed(table.schema) and SOURCE_ID_KEY in table.schema.field(0).metadata and not has_ids(content.schema):
        raise InputError(
            f"{content.file.path!r} has no ids of columns, though the table {table.folder!r} has renamed some: rewrite "
            "its files with the engine that writes it."
        )
    schema = as_named(content.schema, table.schema)
    if missing := set(table.required) - set(schema.names):
        raise InputError(
            f"{content.file.path!r} lacks the column {min(missing)!r}, by which the table {table.folder!r} is "
            "partitioned: rewrite its files with the engine that writes it."
        )
    names = set(table.schema.names)
    fields = [field for field in schema if field.name in names]
    return replace(content, schema=pa.schema(fields, metadata=schema.metadata))


def common_schema(contents: Sequence[Contents], tables: Mapping[str, Table]) -> pa.Schema:
    """Return the schema of all files. What is null in all lines of text is a string, unless a table's file types it."""
    merger = SchemaMerger()
    for content in contents:
        table = tables.get(content.file.path)
        columns = content.schema if table is None else table.columns().with_metadata(content.schema.metadata)
        merger.add(content.file.path, columns)
    typed = {name for content in contents if content.file.format not in TEXTS for name in content.schema.names}
    fields = [field if field.name in typed else declared_field(field) for field in merger.schema]
    fields += folder_fields([content.file for content in contents], merger.schema.names)
    return pa.schema(fields, metadata=merger.schema.metadata)


def notices_of(schema: pa.Schema) -> Iterator[str]:
    """Yield what a person should know of columns that do not stand in the files as they do here."""
    for field in schema:
        if name := (field.metadata or {}).get(NAME_KEY):
            yield f"a second column {name.decode()!r} is called {field.name!r} in prompts and JSONL."
        if EMPTY_KEY in (field.metadata or {}):
            yield f"column {field.name!r}, a struct without fields, is null: Parquet holds nothing of its values."


def fitting_schema(contents: Sequence[Contents], schema: pa.Schema) -> pa.Schema:
    """
    Return `schema`, which files that are added must fit.

    Raises:
        InputError: One has a column more, lacks one that is never null, or has one whose values another type holds.
    """
    names = set(schema.names)
    for content in contents:
        merger = SchemaMerger()
        merger.add("the job so far", schema)
        merger.add(content.file.path, content.schema)
        for field in merger.schema:
            if field.name not in names:
                raise InputError(
                    f"{content.file.path!r} has a column {field.name!r} that the job so far does not have. Drop it, or "
                    "write a new output."
                )
            before = schema.field(field.name)
            is_text = pa.types.is_string(before.type) and pa.types.is_null(field.type)
            if not is_text and (not field.type.equals(before.type) or field.nullable > before.nullable):
                raise InputError(
                    f"column {field.name!r} is {before} in the job so far, which does not hold the values of "
                    f"{content.file.path!r}. Convert the column, or write a new output."
                )
    return schema
