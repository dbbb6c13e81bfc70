"""
Input that is not read here: recognised, with the command that makes Parquet of it.

Knows names; does not open the files.
"""

from __future__ import annotations

from collections.abc import Iterable

from nemo_llm_stage.errors import InputError

_COMMANDS = {
    ".avro": ("polars", "polars.read_avro('{path}').write_parquet('{path}.parquet')"),
    ".orc": (
        "pyarrow.orc, pyarrow.parquet",
        "pyarrow.parquet.write_table(pyarrow.orc.read_table('{path}'), '{path}.parquet')",
    ),
    ".xlsx": ("pandas", "pandas.read_excel('{path}').to_parquet('{path}.parquet')"),
}

_DELTA = "deltalake.DeltaTable('{path}').to_pyarrow_table()"
_ICEBERG = "pyiceberg.table.StaticTable.from_metadata('{metadata}').scan().to_arrow()"
_LANCE = "lance.dataset('{path}').to_table()"


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
        InputError: They are; the message has the command that makes Parquet of the table.
    """
    for path in paths:
        name = f"/{path}"
        if "/_delta_log/" in name:
            raise _table_error("Delta", folder or path.partition("/_delta_log/")[0], "deltalake", _DELTA, path)
        if path.endswith(".metadata.json") and "/metadata/" in name:
            raise _table_error("Iceberg", folder or path.partition("/metadata/")[0], "pyiceberg.table", _ICEBERG, path)
        if "/_versions/" in name and path.endswith(".manifest"):
            raise _table_error("Lance", folder or path.partition("/_versions/")[0], "lance", _LANCE, path)


def _table_error(kind: str, folder: str, module: str, command: str, path: str) -> InputError:
    call = command.format(path=folder, metadata=path)
    script = f"import {module}, pyarrow.parquet; pyarrow.parquet.write_table({call}, 'table.parquet')"
    packages = {"Delta": "deltalake", "Iceberg": "pyiceberg", "Lance": "pylance"}
    return InputError(
        f"{folder!r} is a table of {kind}: its files hold rows that are deleted, and lack columns that the table has. "
        f'Write one version of it as Parquet: pip install {packages[kind]} && python -c "{script}"'
    )
