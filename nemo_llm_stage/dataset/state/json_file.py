"""
Small versioned JSON files of the state folder: replaced as a whole, read by anybody, typed where they enter.

Knows bytes and folders; knows nothing of what the files say.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson

from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import OutputConflictError

T = TypeVar("T")

TMP = "writing"
"""Where these files are made. Not in the folder of the workers' files, which a run that ends clears."""


def write_json(state: Folder, name: str, values: dict[str, Any]) -> None:
    """
    Make `values` the content of the file `name`, whole and at once.

    Raises:
        OSError: It cannot be written.
    """
    state.replace_bytes(dumped(values), name, scratch_sub=TMP)


def dumped(values: dict[str, Any]) -> bytes:
    """Return `values` as JSON; what JSON cannot hold as text."""
    return orjson.dumps(values, default=repr, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)


def read_json(state: Folder, name: str, decode: Callable[[dict[str, Any]], T], *, version: int) -> T | None:
    """
    Return what the file `name` says; None where it is not there.

    Raises:
        OutputConflictError: It is damaged, or of a later version.
        OSError: It cannot be read.
    """
    try:
        data = state.read(name)
    except (FileNotFoundError, NotADirectoryError):  # a file may be in the way of the folder
        return None
    try:
        values = orjson.loads(data)
        if values["version"] > version:
            raise OutputConflictError(f"{state.url}/{name} was written by a later version of this package.")
        return decode(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, OutputConflictError):
            raise
        raise OutputConflictError(
            f"{state.url}/{name} is damaged ({type(error).__name__}: {error}). If no run goes on there, remove it."
        ) from error


def now() -> str:
    """Return the time as these files write it: ``2026-11-25T18:39:05.123Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def age_s(time: str) -> float:
    """
    Return the seconds since a `time` of these files; less than 0 if its writer's clock is ahead.

    Raises:
        ValueError: It is no time; also TypeError.
    """
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
