"""
Tables of Iceberg as input.

Read with `pyiceberg`, which is imported here only. Rows that positional delete files or deletion vectors name are left
out; pyiceberg does not read equality delete files, so a table that has some is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.dataset.arrow_types import map_fields
from nemo_llm_stage.dataset.other_formats import table_error
from nemo_llm_stage.dataset.renames import FILE_ID_KEY, SOURCE_ID_KEY
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.dataset.tables import Table
from nemo_llm_stage.errors import InputError

if TYPE_CHECKING:
    from pyiceberg.table import FileScanTask, StaticTable


def open_iceberg(url: str, names: Sequence[str], version: str | None) -> Table:
    """
    Return an Iceberg table at a snapshot; None takes the newest.

    Args:
        url: The table's folder, as the user named it.
        names: Paths of the files in it.
        version: Id of a snapshot.

    Raises:
        InputError: It has no rows, or its files are not its rows.
        Exception: It cannot be read.
    """
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    metadata = newest_metadata(names)
    table = _open(f"{url.partition('://')[0]}://{metadata}" if "://" in url else metadata)
    newest = table.current_snapshot()
    if newest is None:
        raise InputError(f"the Iceberg table {url!r} has no rows.")
    snapshot_id = newest.snapshot_id if version is None else int(version)
    scan = table.scan(snapshot_id=snapshot_id)
    tasks = _tasks(scan, url, metadata)
    if any(task.file.file_format.name != "PARQUET" for task in tasks):
        raise table_error("Iceberg", url, "its files are not Parquet", metadata)
    projection = scan.projection()
    if any(projection.find_field(number).initial_default is not None for number in projection.field_ids):
        raise table_error("Iceberg", url, "it has columns with a default value, which its files do not hold", metadata)
    schema = schema_to_pyarrow(projection, include_field_ids=True)
    schema = map_fields(schema, _with_source if _has_renames(table.schemas().values()) else _plain)
    files = {_path(task.file.file_path): dict[str, str | None]() for task in tasks}
    return Table(
        url,
        str(snapshot_id),
        schema,
        files,
        deleted=dict(_deleted(tasks)),
        required=sorted(_partitioned_by(table) & set(schema.names)),
        has_newer=snapshot_id != newest.snapshot_id,
    )


def newest_metadata(names: Iterable[str]) -> str:
    """Return the newest metadata of an Iceberg table: ``00012-….metadata.json``, or ``v12.metadata.json``."""
    found = [name for name in names if name.endswith(".metadata.json")]
    return max(found, key=lambda name: int(name.rpartition("/")[2].lstrip("v").split("-")[0].split(".")[0]))


def _open(location: str) -> StaticTable:
    """Return the table of a file of metadata, all of whose files are read as those of any input are."""
    from pyiceberg.catalog.noop import NoopCatalog
    from pyiceberg.io import FileIO
    from pyiceberg.io.fsspec import FsspecInputFile
    from pyiceberg.serializers import FromInputFile
    from pyiceberg.table import StaticTable

    class Files(FileIO):
        """What fsspec opens; the table's metadata, which is data, cannot name another class."""

        def new_input(self, location: str) -> FsspecInputFile:
            fs, path = open_filesystem(location)
            return FsspecInputFile(path, fs)

        def new_output(self, location: str) -> Any:
            raise NotImplementedError(location)

        def delete(self, location: Any) -> None:
            raise NotImplementedError(location)

    io = Files()
    metadata = FromInputFile.table_metadata(io.new_input(location))
    return StaticTable(("table",), metadata, location, io, NoopCatalog("table"))


def _tasks(scan: Any, url: str, metadata: str) -> list[FileScanTask]:
    try:
        return list(scan.plan_files())
    except ValueError as error:
        if "equality deletes" not in str(error):
            raise
        reason = "it has rows that equality delete files name, which pyiceberg does not read"
        raise InputError(
            f"{url!r} is a table of Iceberg, and {reason}. Rewrite its files with the engine that writes it, e.g. in "
            "Spark: CALL catalog.system.rewrite_data_files(table => 'db.table', options => "
            "map('delete-file-threshold', '1'))"
        ) from error


def _with_source(field: pa.Field) -> pa.Field:
    return field.with_metadata({SOURCE_ID_KEY: (field.metadata or {}).get(FILE_ID_KEY, b"")})


def _plain(field: pa.Field) -> pa.Field:
    return field.with_metadata(None)


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


def _partitioned_by(table: StaticTable) -> set[str]:
    """Return columns by whose values the table is partitioned: files of other writers than Iceberg may lack these."""
    fields = [field for spec in table.specs().values() for field in spec.fields]
    ids = {field.source_id for field in fields if str(field.transform) == "identity"}
    return {name for number in ids if (name := table.schema().find_column_name(number)) is not None}


def _deleted(tasks: Sequence[FileScanTask]) -> Iterator[tuple[str, list[int]]]:
    """Yield the path of each file that has deleted rows, and the numbers of these."""
    found: dict[str, dict[str, set[int]]] = {}
    for task in tasks:
        rows: set[int] = set()
        for file in task.delete_files:
            if file.file_path not in found:
                found[file.file_path] = _positions(file)
            rows |= found[file.file_path].get(task.file.file_path, set())
        if rows:
            yield _path(task.file.file_path), sorted(rows)


def _positions(file: Any) -> dict[str, set[int]]:
    """Return the rows that a delete file names: path of their file → numbers."""
    from pyiceberg.table.deletion_vector import deletion_vectors_from_puffin_file
    from pyiceberg.table.puffin import PuffinFile

    fs, path = open_filesystem(file.file_path)
    if file.file_format.name == "PUFFIN":
        vectors = deletion_vectors_from_puffin_file(PuffinFile(fs.cat_file(path)))
        return {vector.referenced_data_file: set(vector.to_vector().to_pylist()) for vector in vectors}
    if file.file_format.name != "PARQUET":
        raise ValueError(f"its delete file {path!r} is {file.file_format.name}, not Parquet")
    with fs.open(path, "rb") as raw:
        table = pq.read_table(raw, columns=["file_path", "pos"])
    positions: dict[str, set[int]] = {}
    for name, position in zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True):
        positions.setdefault(name, set()).add(position)
    return positions


def _path(location: str) -> str:
    return open_filesystem(location)[1]
