"""
Tables of Delta and Iceberg as input: one version of a table is a list of Parquet files, and what holds for each.

Read with `deltalake` and `pyiceberg`, which are imported here only. A table whose files do not hold its rows as they
are (delete files, renamed columns) is refused with the command that makes Parquet of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from nemo_llm_stage.dataset.other_formats import table_error
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.errors import InputError

FOLDER_KEY = b"nemo_llm_stage:folder"
"""Metadata of a field while a job runs: its values hold for whole files, as the names of folders or a table tell."""

PACKAGES = {"delta": "deltalake", "iceberg": "pyiceberg"}
"""What reads each kind of table; the extra has the name of the kind."""

_DELETES = "it has rows that were deleted, which its files still hold"
_RENAMES = "it has columns that were renamed, which its files do not show"


@dataclass(frozen=True, slots=True)
class Table:
    """
    A table at one version.

    Attributes:
        folder: As the user named it.
        version: The number of a Delta version, or the id of an Iceberg snapshot.
        schema: Its columns.
        files: Path of each of its files → the values of partition columns, as text.
        deleted: Path of a file → the numbers of its rows that were deleted, rising; files without such are not there.
        has_newer: Whether the table has a newer version than this one.
    """

    folder: str
    version: str
    schema: pa.Schema = field(compare=False)
    files: Mapping[str, Mapping[str, str | None]] = field(compare=False)
    deleted: Mapping[str, Sequence[int]] = field(default_factory=dict, compare=False)
    has_newer: bool = field(default=False, compare=False)

    def columns(self) -> pa.Schema:
        """Return the schema, in which the columns that files do not hold are marked with `FOLDER_KEY`."""
        names = {name for values in self.files.values() for name in values}
        mark = {FOLDER_KEY: b""}
        return pa.schema([field.with_metadata(mark if field.name in names else None) for field in self.schema])

    def notice(self) -> str:
        """Return a sentence on the version that is read."""
        newer = "; it has a newer one, which --restart or a new output reads" if self.has_newer else ""
        return f"the table {self.folder!r} is read at version {self.version}{newer}."


def kind_of_table(names: Iterable[str], folder: str) -> str | None:
    """Return ``delta`` or ``iceberg`` where `folder`, with files of these paths, is a table of that; else None."""
    root = folder.rstrip("/") + "/"
    for name in names:
        if name.startswith(f"{root}_delta_log/"):
            return "delta"
        if name.startswith(f"{root}metadata/") and name.endswith(".metadata.json"):
            return "iceberg"
    return None


def open_table(kind: str, url: str, root: str, names: Sequence[str], version: str | None) -> Table:
    """
    Return a table at a version; the paths of its files are those of its filesystem.

    Args:
        kind: ``delta`` or ``iceberg``.
        url: The table's folder, as the user named it.
        root: Its path.
        names: Paths of the files in it.
        version: None takes the newest.

    Raises:
        InputError: The package that reads it is not installed, it cannot be read, or its files are not its rows.
    """
    package = PACKAGES[kind]
    try:
        importlib.import_module(package)
    except ImportError:
        raise InputError(
            f"{url!r} is a table of {kind.capitalize()}. To read it: pip install 'nemo-llm-stage[{kind}]'"
        ) from None
    try:
        return _open_delta(url, root, version) if kind == "delta" else _open_iceberg(url, names, version)
    except InputError:
        raise
    except Exception as error:  # these packages raise anything
        at = "" if version is None else f" at version {version}, which the job was planned over,"
        raise InputError(f"cannot read the {kind.capitalize()} table {url!r}{at}: {error}.") from error


def _open_delta(url: str, root: str, version: str | None) -> Table:
    from deltalake import DeltaTable

    table = DeltaTable(url)
    newest = table.version()
    if version is not None and int(version) != newest:
        table = DeltaTable(url, version=int(version))
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        raise table_error("Delta", url, _RENAMES)
    columns = table.metadata().partition_columns
    actions = pa.table(table.get_add_actions(flatten=True))
    paths = [_path(root, path) for path in actions.column("path").to_pylist()]
    values = {name: actions.column(f"partition.{name}").cast(pa.string()).to_pylist() for name in columns}
    files = {path: {name: values[name][place] for name in columns} for place, path in enumerate(paths)}
    schema = pa.schema(table.schema().to_arrow())
    vectors = pa.table(table.deletion_vectors()).to_pylist()
    deleted = {_path(root, row["filepath"]): _places_of_false(row["selection_vector"]) for row in vectors}
    return Table(url, str(table.version()), schema, files, deleted, has_newer=table.version() != newest)


def _places_of_false(kept: Sequence[bool]) -> list[int]:
    return [place for place, is_kept in enumerate(kept) if not is_kept]


def _open_iceberg(url: str, names: Sequence[str], version: str | None) -> Table:
    from pyiceberg.io.pyarrow import schema_to_pyarrow
    from pyiceberg.table import StaticTable

    metadata = newest_metadata(names)
    prefix = url.partition("://")[0] + "://" if "://" in url else ""
    table = StaticTable.from_metadata(prefix + metadata)
    newest = table.current_snapshot()
    if newest is None:
        raise InputError(f"the Iceberg table {url!r} has no rows.")
    snapshot_id = newest.snapshot_id if version is None else int(version)
    if _has_renames(table.schemas().values()):
        raise table_error("Iceberg", url, _RENAMES, metadata)
    scan = table.scan(snapshot_id=snapshot_id)
    tasks = list(scan.plan_files())
    if any(task.delete_files for task in tasks):
        raise table_error("Iceberg", url, _DELETES, metadata)
    if any(task.file.file_format.name != "PARQUET" for task in tasks):
        raise table_error("Iceberg", url, "its files are not Parquet", metadata)
    files = {open_filesystem(task.file.file_path)[1]: dict[str, str | None]() for task in tasks}
    schema = schema_to_pyarrow(scan.projection(), include_field_ids=False)
    return Table(url, str(snapshot_id), schema, files, has_newer=snapshot_id != newest.snapshot_id)


def newest_metadata(names: Iterable[str]) -> str:
    """Return the newest metadata of an Iceberg table: ``00012-….metadata.json``, or ``v12.metadata.json``."""
    found = [name for name in names if name.endswith(".metadata.json")]
    return max(found, key=lambda name: int(name.rpartition("/")[2].lstrip("v").split("-")[0].split(".")[0]))


def _has_renames(schemas: Iterable[Any]) -> bool:
    """Whether a column had another name before, or a name another column."""
    names: dict[int, str] = {}
    ids: dict[str, int] = {}
    for schema in schemas:
        for number in schema.field_ids:
            name = schema.find_column_name(number)
            if names.setdefault(number, name) != name or ids.setdefault(name, number) != number:
                return True
    return False


def _path(root: str, path: str) -> str:
    """Return the path of a file that Delta names relative to the table, or, in a clone of another table, as a URL."""
    return open_filesystem(path)[1] if "://" in path else f"{root.rstrip('/')}/{unquote(path)}"
