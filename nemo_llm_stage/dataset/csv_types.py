"""
The types of CSV columns, from all of their values: a type is taken only where no value loses anything by it.

Whole numbers are int64, other numbers double, ``true`` and ``false`` bool; all else is text: ``007`` keeps its zeros, a
number of many digits its digits, a date its form. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

_INTEGER, _DOUBLE, _BOOL = pa.int64(), pa.float64(), pa.bool_()
_PATTERNS = {
    _INTEGER: r"^(0|-?[1-9][0-9]{0,18})$",
    _DOUBLE: r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$",
    _BOOL: r"^(true|false|True|False|TRUE|FALSE)$",
}
_MAX_DIGITS = 17
"""Of a double; more are not kept."""

_MAX_WHOLE_DIGITS = 15
"""Of an integer in a column of doubles."""

_NO_DIGITS = r"^-?(0\.0*)?|[eE].*$|\."
"""What does not count as a digit of a number."""


class ColumnTypes:
    """
    What the values of columns, seen block by block, may be.

    Args:
        names: Of the columns.
        declared: Types that are given and not looked for.
    """

    def __init__(self, names: Iterable[str], declared: Mapping[str, pa.DataType]) -> None:
        self._declared = declared
        self._possible: dict[str, set[pa.DataType] | None] = dict.fromkeys(names)

    def add(self, table: pa.Table) -> None:
        """Take in some rows, as text."""
        for name in table.schema.names:
            possible = self._possible[name]
            if name in self._declared or possible == set():
                continue
            values = table.column(name).drop_null()
            if len(values):
                left = set(_PATTERNS) if possible is None else possible
                self._possible[name] = {kind for kind in left if _fits(values, kind)}

    def merge(self, other: ColumnTypes) -> None:
        """Take in what was found in another file."""
        for name, possible in other._possible.items():
            before = self._possible.setdefault(name)
            self._possible[name] = possible if before is None else before if possible is None else before & possible

    @property
    def schema(self) -> pa.Schema:
        """Of the columns, in the order in which they were seen; null where there is no value."""
        return pa.schema([(name, self._type_of(name, possible)) for name, possible in self._possible.items()])

    def _type_of(self, name: str, possible: set[pa.DataType] | None) -> pa.DataType:
        if name in self._declared:
            return self._declared[name]
        if possible is None:
            return pa.null()
        return next((kind for kind in _PATTERNS if kind in possible), pa.string())


def _fits(values: pa.ChunkedArray, kind: pa.DataType) -> bool:
    if not pc.all(pc.match_substring_regex(values, _PATTERNS[kind])).as_py():
        return False
    try:
        numbers = values.cast(kind)
    except pa.ArrowInvalid:  # beyond 64 bits
        return False
    if kind != _DOUBLE:
        return True
    num_digits = pc.utf8_length(pc.replace_substring_regex(values, _NO_DIGITS, ""))
    is_whole = pc.invert(pc.match_substring_regex(values, r"[.eE]"))
    is_exact = pc.less_equal(num_digits, pc.if_else(is_whole, _MAX_WHOLE_DIGITS, _MAX_DIGITS))
    return bool(pc.all(pc.and_(is_exact, pc.is_finite(numbers))).as_py())
