"""
Folders that are tables of Delta or Iceberg: recognised by their files, and opened with the package that reads them.

Knows names; the packages are imported in `delta.py` and `iceberg.py` alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence

from nemo_llm_stage.dataset.delta import open_delta
from nemo_llm_stage.dataset.iceberg import open_iceberg
from nemo_llm_stage.dataset.tables import Table
from nemo_llm_stage.errors import InputError
from nemo_llm_stage.text import one_line, without_colors

_MAX_CHARS = 400
"""Of what these packages say: some add a trace."""

PACKAGES = {"delta": "deltalake", "iceberg": "pyiceberg"}
"""What reads each kind of table; the extra has the name of the kind."""


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
    try:
        importlib.import_module(PACKAGES[kind])
    except ImportError:
        raise InputError(
            f"{url!r} is a table of {kind.capitalize()}. To read it: pip install 'nemo-llm-stage[{kind}]'"
        ) from None
    try:
        return open_delta(url, root, version) if kind == "delta" else open_iceberg(url, names, version)
    except InputError:
        raise
    except Exception as error:  # these packages raise anything
        at = "" if version is None else f" at version {version}, which the job was planned over,"
        reason = one_line(without_colors(str(error)), _MAX_CHARS)
        raise InputError(f"cannot read the {kind.capitalize()} table {url!r}{at}: {reason}.") from error
