"""
Input that is not read here: recognised by names, with the command that makes Parquet of it.

Does not open the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nemo_llm_stage.errors import InputError

_COMMANDS = {
    ".avro": ("polars", "polars.read_avro('{path}').write_parquet('{path}.parquet')"),
    ".orc": (
        "pyarrow.orc, pyarrow.parquet",
        "pyarrow.parquet.write_table(pyarrow.orc.read_table('{path}'), '{path}.parquet')",
    ),
    ".xlsx": ("pandas", "pandas.read_excel('{path}').to_parquet('{path}.parquet')"),
}

_TABLES = {
    "Delta": ("deltalake", "deltalake, pyarrow", "pyarrow.table(deltalake.DeltaTable('{path}').scan())"),
    "Iceberg": (
        "'pyiceberg[pyarrow]'",
        "pyiceberg.table",
        "pyiceberg.table.StaticTable.from_metadata('{metadata}').scan().to_arrow()",
    ),
    "Lance": ("pylance", "lance", "lance.dataset('{path}').to_table()"),
}
"""Package, modules, and the call that reads a table as a whole."""

_NUM_FOLDERS_ABOVE = 4
"""That are looked at for a table: partition columns give folders within one."""


def conversion_of(path: str) -> str:
    """Return why a file cannot be read, for people: its format is unknown, or the command that converts it."""
    lowered = path.lower()
    for packed in (".gz", ".zst", ".bz2", ".xz"):
        lowered = lowered.removesuffix(packed)
    for suffix, (modules, command) in _COMMANDS.items():
        if lowered.endswith(suffix):
            return f'convert it to Parquet first: python -c "import {modules}; {command.format(path=path)}"'
    return (
        "cannot tell the format of it by its name; it must end in one of .parquet, .jsonl, .ndjson, .json, .csv, .tsv, "
        ".arrow, .feather."
    )


def check_no_table(paths: Iterable[str], folder: str = "") -> None:
    """
    Refuse the files of a Delta, Iceberg or Lance table: read one by one, deleted rows would come back.

    Raises:
        InputError: They are; the message says how to read the table.
    """
    for path in paths:
        name = f"/{path}"
        for kind, mark in (("Delta", "/_delta_log/"), ("Iceberg", "/metadata/")):
            if mark in name and (kind == "Delta" or path.endswith(".metadata.json")):
                table = path.partition(mark)[0]
                raise InputError(f"{table!r} is a table of {kind}: name this folder itself, and read it alone.")
        if "/_versions/" in name and path.endswith(".manifest"):
            what = "its files hold rows that are deleted, and lack columns that the table has"
            raise table_error("Lance", folder or path.partition("/_versions/")[0], what)


def check_not_in_table(fs: Any, folder: str) -> None:
    """
    Refuse a folder, or files of one, that is a part of a Delta or Iceberg table.

    Raises:
        InputError: It is.
    """
    parts = folder.rstrip("/").split("/")
    for num in range(len(parts), max(1, len(parts) - _NUM_FOLDERS_ABOVE), -1):
        root = "/".join(parts[:num])
        if fs.isdir(f"{root}/_delta_log"):
            check_no_table([f"{root}/_delta_log/"])
        if fs.isdir(f"{root}/metadata"):
            check_no_table(fs.ls(f"{root}/metadata", detail=False))


def table_error(kind: str, folder: str, reason: str, metadata: str = "") -> InputError:
    """Return the error for a table that is not read, with the command that makes Parquet of it."""
    package, module, command = _TABLES[kind]
    call = command.format(path=folder, metadata=metadata)
    script = f"import {module}, pyarrow.parquet; pyarrow.parquet.write_table({call}, 'table.parquet')"
    return InputError(
        f"{folder!r} is a table of {kind}, and {reason}. Write one version of it as Parquet: "
        f'pip install {package} && python -c "{script}"'
    )
