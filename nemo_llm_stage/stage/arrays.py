"""
Arrow arrays of Python values.

Arrow's own conversion imports pandas first, wherever that is installed: 0.2 s of CPU and 50 MB for each worker. Texts
and numbers, which are all that most columns hold, are converted without it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

_NUMBERS = {pa.int32(): (int, "i"), pa.int64(): (int, "q"), pa.float64(): (float, "d")}
"""Arrow type → Python type and the code of its machine form."""

_MAX_TEXT_BYTES = (1 << 31) - 1
"""Arrow makes several chunks of a longer text column."""


def array_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """
    Return `values` as an array of `kind`; None becomes null.

    Raises:
        pa.ArrowException: A value does not fit; also TypeError, ValueError and OverflowError.
    """
    found = set(map(type, values)) - {type(None)}
    if not found:
        return pa.nulls(len(values), kind)
    if kind == pa.string() and found == {str}:
        return _texts(values)
    kind_of_number, code = _NUMBERS.get(kind, (None, ""))
    if found == {kind_of_number}:
        numbers = array(code, [0 if value is None else value for value in values])
        return pa.Array.from_buffers(kind, len(values), [_validity(values), pa.py_buffer(numbers)])
    return pa.array(values, type=kind)


def _texts(values: Sequence[str | None]) -> pa.Array:
    encoded = [b"" if value is None else value.encode() for value in values]
    joined = b"".join(encoded)
    if len(joined) > _MAX_TEXT_BYTES:
        return pa.array(values, type=pa.string())
    offsets = array("i", accumulate(map(len, encoded), initial=0))
    return pa.Array.from_buffers(
        pa.string(), len(values), [_validity(values), pa.py_buffer(offsets), pa.py_buffer(joined)]
    )


def _validity(values: Sequence[Any]) -> pa.Buffer | None:
    """Return the bits that tell which values are not null; None where all are."""
    if None not in values:
        return None
    return pa.py_buffer(np.packbits([value is not None for value in values], bitorder="little").tobytes())
