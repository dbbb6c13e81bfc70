"""
A table of Delta or Iceberg at one version: a list of Parquet files, and what holds for each.

Pure. `delta.py` and `iceberg.py` make it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

FOLDER_KEY = b"nemo_llm_stage:folder"
"""Metadata of a field while a job runs: its values hold for whole files, as the names of folders or a table tell."""


@dataclass(frozen=True, slots=True)
class Table:
    """
    A table at one version.

    Attributes:
        folder: As the user named it.
        version: The number of a Delta version, or the id of an Iceberg snapshot.
        schema: Its columns, each with how files know it where they have other names; see `renames`.
        files: Path of each of its files → the values of partition columns, as text.
        deleted: Path of a file → the numbers of its rows that were deleted, rising; files without such are not there.
        required: Columns that each file must have, as its folder and the table's log may hold them otherwise.
        has_newer: Whether the table has a newer version than this one.
    """

    folder: str
    version: str
    schema: pa.Schema = field(compare=False)
    files: Mapping[str, Mapping[str, str | None]] = field(compare=False)
    deleted: Mapping[str, Sequence[int]] = field(default_factory=dict, compare=False)
    required: Sequence[str] = field(default=(), compare=False)
    has_newer: bool = field(default=False, compare=False)

    def columns(self) -> pa.Schema:
        """Return the schema, in which the columns that files do not hold are marked with `FOLDER_KEY`."""
        names = {name for values in self.files.values() for name in values}
        mark = {FOLDER_KEY: b""}
        return pa.schema(
            [
                field.with_metadata({**(field.metadata or {}), **mark}) if field.name in names else field
                for field in self.schema
            ]
        )

    def notice(self) -> str:
        """Return a sentence on the version that is read."""
        newer = "; it has a newer one, which --restart or a new output reads" if self.has_newer else ""
        return f"the table {self.folder!r} is read at version {self.version}{newer}."
