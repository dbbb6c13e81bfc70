"""
What the user names as input becomes a sorted list of files with their identity.

Knows names and sizes; does not open the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.errors import InputError, LLMStageError

PARQUET_SUFFIXES = (".parquet", ".pq")
JSONL_SUFFIXES = tuple(stem + packed for stem in (".jsonl", ".ndjson", ".jsonlines") for packed in ("", ".gz", ".zst"))
_GLOB_CHARS = "*?["


@dataclass(frozen=True, slots=True)
class InputFile:
    """
    One input file and what identifies its content without reading it.

    Attributes:
        path: As fsspec takes it, with its protocol unless local.
        size: Bytes.
        version: Modification time or etag; changes when the content does.
    """

    path: str
    size: int
    version: str

    @property
    def format(self) -> str:
        """``parquet`` or ``jsonl``."""
        return "parquet" if self.path.endswith(PARQUET_SUFFIXES) else "jsonl"

    @property
    def is_compressed(self) -> bool:
        """Whether the file is a compressed stream, which can only be read from its start."""
        return self.path.endswith((".gz", ".zst"))


def find_files(inputs: str | Path | Sequence[str | Path]) -> list[InputFile]:
    """
    Return the files that `inputs` name, sorted by path, each once.

    Args:
        inputs: Files, globs or folders (read with all their subfolders), as paths or fsspec URLs. In a folder, files
            of other kinds and names that begin with ``_`` or ``.`` are passed over.

    Raises:
        InputError: Nothing matches, a named file is of a kind that cannot be read, or the place cannot be reached.
    """
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not names:
        raise InputError("no input is given.")
    files: dict[str, InputFile] = {}
    for name in names:
        try:
            found = _find(str(name))
        except LLMStageError:
            raise
        except Exception as error:  # a store's library may raise anything
            raise InputError(f"cannot look for {str(name)!r}: {type(error).__name__}: {error}.") from error
        files |= {file.path: file for file in found}
    return [files[path] for path in sorted(files)]


def _find(name: str) -> list[InputFile]:
    fs, path = open_filesystem(name)
    prefix = name.partition("://")[0] + "://" if "://" in name else ""
    if any(char in path for char in _GLOB_CHARS):
        infos = [
            info for info in fs.glob(path, detail=True).values() if info["type"] == "file" and _is_data(info["name"])
        ]
        where = f"no Parquet or JSONL file matches {name!r}"
    elif fs.isdir(path):
        infos = [info for info in fs.find(path, detail=True).values() if _is_data(info["name"], below=path)]
        where = f"the folder {name!r} holds no Parquet or JSONL file"
    elif fs.exists(path):
        if not path.endswith(PARQUET_SUFFIXES + JSONL_SUFFIXES):
            known = ", ".join(PARQUET_SUFFIXES[:1] + JSONL_SUFFIXES[:3])
            raise InputError(f"cannot tell the format of {name!r} by its name; it must end in one of {known}.")
        infos = [fs.info(path)]
        where = ""
    else:
        raise InputError(f"there is no file or folder {name!r}.")
    if not infos:
        raise InputError(f"{where}.")
    return [_input_file(prefix, info) for info in infos]


def _is_data(path: str, below: str = "") -> bool:
    parts = path[len(below) :].strip("/").split("/") if below else [path.rsplit("/", 1)[-1]]
    return path.endswith(PARQUET_SUFFIXES + JSONL_SUFFIXES) and not any(part.startswith(("_", ".")) for part in parts)


def _input_file(prefix: str, info: dict[str, Any]) -> InputFile:
    version = (
        info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or info.get("updated")
    )
    return InputFile(path=prefix + info["name"], size=int(info["size"]), version=str(version))
