"""
What the user names as input becomes a sorted list of files with their identity, and a count of what is ignored.

Knows names and sizes; does not open the files.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fsspec.implementations.local import LocalFileSystem

from nemo_llm_stage.dataset.object_versions import pinned, without_version
from nemo_llm_stage.dataset.open_table import kind_of_table, open_table
from nemo_llm_stage.dataset.other_formats import check_no_table, check_not_in_table, conversion_of
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.dataset.tables import Table
from nemo_llm_stage.errors import InputError, LLMStageError

PARQUET_SUFFIXES = (".parquet", ".pq", ".parq")
PACKED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
JSONL_SUFFIXES = tuple(
    stem + packed for stem in (".jsonl", ".ndjson", ".jsonlines", ".json") for packed in ("", *PACKED_SUFFIXES)
)
CSV_SUFFIXES = tuple(stem + packed for stem in (".csv", ".tsv") for packed in ("", *PACKED_SUFFIXES))
ARROW_SUFFIXES = (".arrow", ".arrows", ".feather", ".ipc")
_SUFFIXES = {
    "parquet": PARQUET_SUFFIXES,
    "jsonl": JSONL_SUFFIXES,
    "csv": CSV_SUFFIXES,
    "arrow": ARROW_SUFFIXES,
}
_DATA_SUFFIXES = tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
_KINDS = "Parquet, JSONL, CSV or Arrow file"
_RANKS = {"parquet": 0, "jsonl": 0, "csv": 1, "arrow": 1, ".json": 2}
"""In a folder, files of a higher rank than others describe these."""

_GLOB_CHARS = "*?["
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_NUM_THREADS = 64


@dataclass(frozen=True, slots=True)
class InputFile:
    """
    One input file and what identifies its content without reading it.

    Attributes:
        path: As fsspec takes it, with its protocol unless local.
        size: Bytes.
        version: Modification time or etag; changes when the content does.
        folder_values: Values that the names of its folders give it, as in ``year=2024/a.parquet``; below the input.
    """

    path: str
    size: int
    version: str
    folder_values: Sequence[tuple[str, str | None]] = field(default=(), compare=False)

    @property
    def format(self) -> str:
        """``parquet``, ``jsonl``, ``csv`` or ``arrow``."""
        return format_of(self.path)

    @property
    def is_sequential(self) -> bool:
        """Whether the file can only be read from its start."""
        return is_sequential(self.path)


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """
    What `find_input` finds.

    Attributes:
        files: Sorted by path, each once.
        notices: A sentence for what was ignored, if there was any, and for each table.
        tables: The tables that files are of.
    """

    files: list[InputFile]
    notices: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


def is_sequential(path: str) -> bool:
    """Whether a file of text can only be read from its start: packed, or ``.json``, maybe an array."""
    return without_version(path).lower().endswith((*PACKED_SUFFIXES, ".json"))


def format_of(path: str) -> str:
    """Return the format of the file at `path`, by its name: ``parquet``, ``jsonl``, ``csv`` or ``arrow``."""
    name = without_version(path).lower()
    return next((kind for kind, suffixes in _SUFFIXES.items() if name.endswith(suffixes)), "jsonl")


def unpacked_name(path: str) -> str:
    """Return `path` in small letters, without the ending of a compressed file."""
    name = without_version(path).lower()
    return next((name.removesuffix(packed) for packed in PACKED_SUFFIXES if name.endswith(packed)), name)


def find_files(inputs: str | Path | Sequence[str | Path]) -> list[InputFile]:
    """Return the files of `find_input`."""
    return find_input(inputs).files


def find_input(inputs: str | Path | Sequence[str | Path], versions: Mapping[str, str] | None = None) -> FoundFiles:
    """
    Return the files that `inputs` name, and what was ignored.

    Args:
        inputs: Files, globs or folders (read with all their subfolders), as paths or fsspec URLs. In a folder, files
            of other kinds, names that begin with ``_`` or ``.`` and folders that are links are ignored. So are CSV
            and Arrow files beside Parquet or JSONL, and ``.json`` beside other files. A folder may be a table.
        versions: Folder of a table, or object of a bucket with versions → the version to read; else the newest.

    Raises:
        InputError: Nothing matches, a named file is of a kind that cannot be read, or the place cannot be reached.
    """
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not names:
        raise InputError("no input is given.")
    files: dict[str, InputFile] = {}
    passed_over: Counter[str] = Counter()
    tables: list[Table] = []
    for name in names:
        try:
            found = _find(str(name), passed_over, tables, versions or {})
        except LLMStageError:
            raise
        except Exception as error:  # a store's library may raise anything
            raise InputError(f"cannot look for {str(name)!r}: {type(error).__name__}: {error}.") from error
        files |= {file.path: file for file in found}
    listed = ", ".join(f"{num:,} {why}" for why, num in sorted(passed_over.items()))
    notices = [f"ignored in the input: {listed}."] if passed_over else []
    notices += [table.notice() for table in tables]
    return FoundFiles([files[path] for path in sorted(files)], tuple(notices), tuple(tables))


def folders_of(inputs: str | Path | Sequence[str | Path]) -> list[str]:
    """Return those of `inputs` that are folders, whose subfolders are read too, as paths of their filesystems."""
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    places = [open_filesystem(str(name)) for name in names]
    return [path for fs, path in places if fs.isdir(path)]


def _find(name: str, passed_over: Counter[str], tables: list[Table], versions: Mapping[str, str]) -> list[InputFile]:
    fs, path = open_filesystem(name)
    prefix = name.partition("://")[0] + "://" if "://" in name else ""
    is_glob = any(char in path for char in _GLOB_CHARS) and not fs.exists(path)
    if is_glob:
        matches = [info for info in fs.glob(path, detail=True).values() if info["type"] == "file"]
        check_no_table(info["name"] for info in matches)
        fixed = path[: min(path.index(char) for char in _GLOB_CHARS if char in path)].rpartition("/")[0]
        check_not_in_table(fs, fixed)
        infos = [info for info in matches if _is_data(info["name"].rpartition("/")[2], passed_over)]
        where = f"no {_KINDS} matches {name!r}"
    elif fs.isdir(path):
        matches = [info for info in fs.find(path, detail=True).values() if not _is_linked_folder(info)]
        if kind := kind_of_table((info["name"] for info in matches), path):
            table = open_table(kind, name, path, [info["name"] for info in matches], versions.get(name))
            return _files_of(table, prefix, fs, {info["name"]: info for info in matches}, tables)
        check_no_table((info["name"] for info in matches), folder=name)
        check_not_in_table(fs, path)
        fixed = path
        infos = _main_ones([info for info in matches if _is_data(info["name"][len(path) :], passed_over)], passed_over)
        if isinstance(fs, LocalFileSystem):
            _count_linked_folders(path, passed_over)
        where = f"the folder {name!r} holds no {_KINDS}"
    elif fs.exists(path):
        if not path.lower().endswith(_DATA_SUFFIXES):
            raise InputError(f"cannot read {name!r}: {conversion_of(path)}")
        infos = [fs.info(path)]
        fixed, where = path, ""
    else:
        raise InputError(f"there is no file or folder {name!r}.")
    if not infos:
        listed = ", ".join(f"{num:,} {why}" for why, num in sorted(passed_over.items()))
        raise InputError(f"{where}{f'; ignored: {listed}' if listed else ''}.")
    return [input_file_of(prefix, info, fixed) for info in pinned(fs, prefix, infos, versions, passed_over)]


def _files_of(
    table: Table, prefix: str, fs: Any, infos: Mapping[str, dict[str, Any]], tables: list[Table]
) -> list[InputFile]:
    """Return the files of a table, which is added to `tables` with their paths as users name them."""
    found: list[InputFile] = []
    for path, values in table.files.items():
        try:
            info = infos[path] if path in infos else fs.info(path)
        except FileNotFoundError:
            raise InputError(
                f"the file {path!r} of the table {table.folder!r} at version {table.version} is gone."
            ) from None
        found.append(replace(input_file_of(prefix, info, ""), folder_values=tuple(values.items())))
    if not found:
        raise InputError(f"the table {table.folder!r} has no rows at version {table.version}.")
    by_path = {file.path: dict(file.folder_values) for file in found}
    deleted = {prefix + path: rows for path, rows in table.deleted.items()}
    tables.append(replace(table, files=by_path, deleted=deleted))
    return found


def _is_data(path: str, passed_over: Counter[str]) -> bool:
    """Whether the file at `path`, below the input, is one to read; else it is counted."""
    name = path.rpartition("/")[2]
    if any(part.startswith(("_", ".")) for part in path.strip("/").split("/")):
        passed_over["hidden (their names, or those of their folders, begin with _ or .)"] += 1
    elif not name.lower().endswith(_DATA_SUFFIXES):
        suffix = Path(name).suffix
        passed_over[f"with the ending {suffix}" if suffix else "without an ending"] += 1
    else:
        return True
    return False


def _main_ones(infos: list[dict[str, Any]], passed_over: Counter[str]) -> list[dict[str, Any]]:
    """Return a folder's files of data, without CSV or Arrow beside Parquet or JSONL, and ``.json`` beside others."""
    best = min((_RANKS[_kind_of(info["name"])] for info in infos), default=0)
    kept = [info for info in infos if _RANKS[_kind_of(info["name"])] == best]
    for info in infos:
        if _RANKS[_kind_of(info["name"])] > best:
            ending = kind if (kind := _kind_of(info["name"])) == ".json" else Path(info["name"]).suffix
            passed_over[f"with the ending {ending} beside other files"] += 1
    return kept


def _kind_of(path: str) -> str:
    return ".json" if ".json" in [suffix.lower() for suffix in Path(path).suffixes] else format_of(path)


def _is_linked_folder(info: dict[str, Any]) -> bool:
    return bool(info.get("islink")) and Path(info["name"]).is_dir()


def _count_linked_folders(path: str, passed_over: Counter[str]) -> None:
    for folder, subfolders, _ in os.walk(path):
        num = sum((Path(folder) / name).is_symlink() for name in subfolders)
        if num:
            passed_over["folders that are links"] += num


def input_file_of(prefix: str, info: dict[str, Any], fixed: str = "") -> InputFile:
    """Return the file that fsspec tells of; `prefix` is its protocol, and folders below `fixed` give it values."""
    names = ("ETag", "etag", "mtime", "LastModified", "updated", "blob_id")
    version = next((info[name] for name in names if info.get(name)), None)
    folders = info["name"][len(fixed) :].split("/")[:-1] if fixed else []
    return InputFile(prefix + info["name"], int(info["size"]), str(version), tuple(folder_values(folders)))


def folder_values(folders: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Yield name and value of each folder that is called ``name=value``; None for Hive's null."""
    for folder in folders:
        name, is_value, value = folder.partition("=")
        if is_value and name:
            yield unquote(name), None if value == _HIVE_NULL else unquote(value)
