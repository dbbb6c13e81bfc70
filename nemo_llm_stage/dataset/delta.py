"""
Tables of Delta as input.

Read with `deltalake`, which is imported here only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from nemo_llm_stage.dataset.arrow_types import map_fields
from nemo_llm_stage.dataset.renames import SOURCE_NAME_KEY
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.dataset.tables import Table

_NAME_IN_FILES = b"delta.columnMapping.physicalName"


def open_delta(url: str, root: str, version: str | None) -> Table:
    """
    Return a Delta table at a version; None takes the newest.

    Args:
        url: The table's folder, as the user named it.
        root: Its path.
        version: A number.

    Raises:
        Exception: It cannot be read.
    """
    from deltalake import DeltaTable

    options = _options_of_store(url)
    table = DeltaTable(url, storage_options=options)
    newest = table.version()
    if version is not None and int(version) != newest:
        table = DeltaTable(url, version=int(version), storage_options=options)
    columns = table.metadata().partition_columns
    actions = pa.table(table.get_add_actions(flatten=True))
    paths = [_path(root, path) for path in actions.column("path").to_pylist()]
    values = {name: actions.column(f"partition.{name}").cast(pa.string()).to_pylist() for name in columns}
    files = {path: {name: values[name][place] for name in columns} for place, path in enumerate(paths)}
    is_mapped = table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none"
    schema = map_fields(pa.schema(table.schema().to_arrow()), _with_source if is_mapped else _plain)
    vectors = pa.table(table.deletion_vectors()).to_pylist()
    deleted = {_path(root, row["filepath"]): _places_of_false(row["selection_vector"]) for row in vectors}
    return Table(url, str(table.version()), schema, files, deleted, has_newer=table.version() != newest)


def _with_source(field: pa.Field) -> pa.Field:
    """
    Return a field that says how files call it.

    In both modes, ``name`` and ``id``, files are written with this name. Source: Delta's PROTOCOL.md, "Writer
    Requirements for Column Mapping".
    """
    return field.with_metadata({SOURCE_NAME_KEY: (field.metadata or {}).get(_NAME_IN_FILES, field.name.encode())})


def _plain(field: pa.Field) -> pa.Field:
    return field.with_metadata(None)


def _places_of_false(kept: Sequence[bool]) -> list[int]:
    return [place for place, is_kept in enumerate(kept) if not is_kept]


def _path(root: str, path: str) -> str:
    """Return the path of a file that Delta names relative to the table, or, in a clone of another table, as a URL."""
    return open_filesystem(path)[1] if "://" in path else f"{root.rstrip('/')}/{unquote(path)}"


def _options_of_store(url: str) -> dict[str, str]:
    """Return by which settings deltalake, which has a client of its own, reaches the S3 store that fsspec reaches."""
    fs: Any = open_filesystem(url)[0]
    if "s3" not in fs.protocol:
        return {}
    client = fs.s3.meta
    endpoint = "" if "amazonaws.com" in client.endpoint_url else client.endpoint_url
    found = {
        "aws_access_key_id": fs.key,
        "aws_secret_access_key": fs.secret,
        "aws_session_token": fs.token,
        "aws_region": client.region_name,
        "aws_endpoint": endpoint,
        "aws_allow_http": "true" if endpoint.startswith("http://") else "",
        "aws_skip_signature": "true" if fs.anon else "",
    }
    return {name: value for name, value in found.items() if value}
