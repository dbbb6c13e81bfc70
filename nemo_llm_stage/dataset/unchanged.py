"""
Whether input files are what they were when they were found.

Knows names, sizes and versions; does not open the files.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from nemo_llm_stage.dataset.files import InputFile, input_file_of
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.errors import InputError

_NUM_THREADS = 64
_FILES_WORTH_LISTING = 20
"""Of one folder in a store, from which on the folder is listed in place of a look at each."""


def check_unchanged(files: Sequence[InputFile]) -> None:
    """
    Refuse files that are not what they were when they were found.

    Raises:
        InputError: One was changed, or is gone.
    """
    listed = _listed(files)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        looks = pool.map(lambda file: _is_unchanged(file, listed), files)
        changed = [file.path for file, is_same in zip(files, looks, strict=True) if not is_same]
    if changed:
        raise InputError(
            f"the input was changed while the job ran: {', '.join(map(repr, changed[:5]))}. Rows that were read before "
            "and after do not belong together: restore the file and run the job again, or run it with --restart."
        )


def _listed(files: Sequence[InputFile]) -> dict[str, InputFile]:
    """Return what listings tell of folders in stores that have many of the files: one call for a thousand files."""
    folders = Counter(file.path.rpartition("/")[0] for file in files if "://" in file.path)
    found: dict[str, InputFile] = {}
    for folder, num in folders.items():
        if num >= _FILES_WORTH_LISTING:
            fs, path = open_filesystem(folder)
            fs.invalidate_cache(path)
            prefix = folder.removesuffix(path.rstrip("/"))
            with contextlib.suppress(FileNotFoundError):
                infos = [info for info in fs.ls(path, detail=True) if info["type"] == "file"]
                found |= {prefix + info["name"]: input_file_of(prefix, info) for info in infos}
    return found


def _is_unchanged(file: InputFile, listed: Mapping[str, InputFile]) -> bool:
    if listed.get(file.path) == file:
        return True
    fs, path = open_filesystem(file.path)
    try:
        fs.invalidate_cache(path.rsplit("/", 1)[0])
        return input_file_of("", {**fs.info(path), "name": path}) == InputFile(path, file.size, file.version)
    except FileNotFoundError:
        return False
