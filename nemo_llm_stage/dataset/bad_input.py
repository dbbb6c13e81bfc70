"""
Input that cannot be read and was left out, and what is written down of it.

By default nothing is: a broken line or file stops a job. Knows files, lines and reasons; knows nothing of formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import orjson
import pyarrow as pa

from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import InputError


@dataclass(frozen=True, slots=True)
class BadInput:
    """
    A part of the input that was left out.

    Attributes:
        path: The file.
        line: Of a JSONL file, counted from 1; None where it is more than a line.
        num_rows: Rows left out; 0 where nobody can tell, as for a file that cannot be opened.
        reason: Why, for people.
    """

    path: str
    line: int | None
    num_rows: int
    reason: str


OnBad = Callable[[BadInput], None]
"""Takes note of input that is left out. Where there is none, bad input is an error."""


def unreadable(path: str, error: BaseException, advice: str = "") -> InputError:
    """Return the error to raise where `path` cannot be read; raise it from `error`, by which `is_damage` tells."""
    return InputError(f"cannot read {path!r}: {error}.{advice}")


def is_damage(error: BaseException | None) -> bool:
    """
    Whether `error` tells of a file's content, and not of a disk or a network that may work again.

    Arrow raises OSError for both; only the operating system's, and a store's, have a type of their own or an errno.
    """
    if isinstance(error, OSError):
        return type(error) is OSError and error.errno is None
    return isinstance(error, pa.ArrowException | EOFError)


def write_bad_input(folder: Folder, name: str, records: Sequence[BadInput], *, scratch_sub: str) -> None:
    """Write `records` down as the file `name` of `folder`, one JSON object a line; nothing where there are none."""
    if records:
        folder.make(name.rpartition("/")[0])
        data = b"".join(orjson.dumps(asdict(record)) + b"\n" for record in records)
        folder.replace_bytes(data, name, scratch_sub=scratch_sub)


def read_bad_input(folder: Folder, name: str) -> list[BadInput]:
    """Return what was written down in the file `name` of `folder`; one that is not there tells of nothing."""
    try:
        return [BadInput(**orjson.loads(line)) for line in folder.read(name).splitlines()]
    except FileNotFoundError:
        return []
