"""
Records of input that could not be read and was left out.

By default nothing is left out: a broken line or file stops the job. Knows files, lines and reasons; knows nothing of
formats.
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
        line: Of a text file, counted from 1; None for a whole file or the rest of one.
        num_rows: Rows left out; 0 if unknown, e.g. for a file that cannot be opened.
        reason: Why it was left out, in words for users.
    """

    path: str
    line: int | None
    num_rows: int
    reason: str


OnBad = Callable[[BadInput], None]
"""Called with each part of the input that is left out. Where None is given instead, bad input is an error."""


def unreadable(path: str, error: BaseException, advice: str = "") -> InputError:
    """Return the error for a file that cannot be read. Raise it from `error`: `is_damage` looks at its cause."""
    return InputError(f"cannot read {path!r}: {str(error).rstrip('.')}.{advice}")


def is_damage(error: BaseException | None) -> bool:
    """
    Whether `error` means that a file is damaged, and not that a disk or network failed for a while.

    Arrow raises OSError for both. An OSError of the operating system or of a store has an errno or a type of its own.
    """
    if isinstance(error, OSError):
        return type(error) is OSError and error.errno is None
    return isinstance(error, pa.ArrowException | EOFError)


def write_bad_input(folder: Folder, name: str, records: Sequence[BadInput], *, scratch_sub: str) -> None:
    """Write `records` to the file `name` of `folder`, one JSON object a line. Without records no file is written."""
    if records:
        folder.make(name.rpartition("/")[0])
        data = b"".join(orjson.dumps(asdict(record)) + b"\n" for record in records)
        folder.replace_bytes(data, name, scratch_sub=scratch_sub)


def read_bad_input(folder: Folder, name: str) -> list[BadInput]:
    """Return the records in the file `name` of `folder`; none if there is no such file."""
    try:
        return [BadInput(**orjson.loads(line)) for line in folder.read(name).splitlines()]
    except FileNotFoundError:
        return []
