"""
What a template sees of a row: plain Python values, with every kind of null made one.

None, NaN, pandas' NA and NaT all become a `Null`, which a template may test but not use. Knows Jinja2's Undefined;
knows nothing of templates or columns' types.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jinja2 import Undefined
from jinja2.exceptions import TemplateRuntimeError

_PLAIN = frozenset({str, int, bool, bytes})
_PANDAS_NULLS = frozenset({"NAType", "NaTType"})


class NullUsed(TemplateRuntimeError):  # noqa: N818 - not an error until `on_null` says so
    """A template used the value of a null column; the message is the column's name."""


class Null(Undefined):
    """
    A null. It is false, equals None, ``is none``, takes a ``default(…)`` and hands itself on to its fields.

    As it stands it is an empty text, an empty list, and nothing to calculate with.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key: Any) -> Any:
        return self

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Return itself: a method of a null is a null too."""
        return self

    def __contains__(self, item: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Null)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(None)


class StrictNull(Null):
    """
    A null column that must not be used: not printed, filtered, looped over or calculated with.

    Raises:
        NullUsed: On any of these.
    """

    __slots__ = ()

    def _use(self, *_args: Any, **_kwargs: Any) -> Any:
        raise NullUsed(str(self._undefined_name))

    __str__ = __len__ = __iter__ = __call__ = __contains__ = _use
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _use
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pos__ = __neg__ = __pow__ = __rpow__ = _use
    __lt__ = __le__ = __gt__ = __ge__ = __int__ = __float__ = __complex__ = _use


def null_of(column: str, *, is_strict: bool) -> Null:
    """Return the null that stands for `column`."""
    kind = StrictNull if is_strict else Null
    return kind(hint=f"column {column!r} is null", name=column)


def is_null(value: Any) -> bool:
    """Whether `value` stands for "no value": None, NaN of any float type, pandas' NA or NaT."""
    if value is None:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return type(value).__name__ in _PANDAS_NULLS


def plain(value: Any, null: Null) -> Any:
    """
    Return `value` as plain Python: NumPy unwrapped, nulls replaced.

    Args:
        value: What a row holds.
        null: Stands in for `value` itself; nulls inside a list or dict become an empty text.
    """
    if type(value) in _PLAIN:
        return value
    if is_null(value):
        return null
    if hasattr(value, "tolist"):
        return plain(value.tolist(), null)
    if isinstance(value, Mapping):
        return {key: plain(item, EMPTY) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, EMPTY) for item in value]
    return value


EMPTY = Null(hint="it is null")
