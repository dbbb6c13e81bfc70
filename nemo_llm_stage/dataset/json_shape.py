"""
What the values of JSON look like, over any number of rows: kinds, ranges of integers, items and fields.

Shapes of parts of a file are merged into that of the whole. Knows values; knows nothing of files or Arrow's arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MAX_FIELDS = 64
"""Objects with more fields than this are looked at one by one: they may be maps."""

MAX_DEPTH = 40
"""Values in values of a row: Arrow reads Parquet of 100 levels, and a list has two."""

_SPARSENESS = 4
"""Objects are a map where there are so many times more different keys than an object has."""


class Shape:
    """
    What the values of one field look like.

    Attributes:
        kinds: Kind of value → how many there are: ``bool``, ``integer``, ``number``, ``string``, ``list``, ``object``,
            and ``deep`` for a list or object below `MAX_DEPTH`.
        low: Smallest integer.
        high: Largest integer.
        items: Of all lists; None where there is none.
        fields: Of all objects: name → shape. Empty where they are a map.
        num_keys: Fields that the objects have in all.
        values: Of a map's values; None where the objects are no map.
    """

    __slots__ = ("fields", "high", "items", "kinds", "low", "num_keys", "values")

    def __init__(self) -> None:
        self.kinds: dict[str, int] = {}
        self.low = 0
        self.high = 0
        self.items: Shape | None = None
        self.fields: dict[str, Shape] = {}
        self.num_keys = 0
        self.values: Shape | None = None

    def add(self, value: Any, depth: int = 0) -> None:
        """
        Take in one value, as `json_text.parse` gives it.

        Args:
            value: The value.
            depth: Of the value in its row; 0 for the row, which stays an object however many fields there are.
        """
        if value is None:
            return
        if depth > MAX_DEPTH and isinstance(value, list | dict):
            self._count("deep", 1)
            return
        if isinstance(value, bool):
            self._count("bool", 1)
        elif isinstance(value, str):
            self._count("string", 1)
        elif isinstance(value, int):
            self._count("integer", 1)
            self.low, self.high = min(self.low, value), max(self.high, value)
        elif isinstance(value, float):
            self._count("number", 1)
        elif isinstance(value, list):
            self._count("list", 1)
            self.items = self.items or Shape()
            for item in value:
                self.items.add(item, depth + 1)
        else:
            self._add_object(value, depth)

    def merge(self, other: Shape, *, is_row: bool = False) -> None:
        """Take in the shape of other values of the same field."""
        for kind, num in other.kinds.items():
            self._count(kind, num)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        if other.items is not None:
            self.items = self.items or Shape()
            self.items.merge(other.items)
        self.num_keys += other.num_keys
        if other.values is not None:
            self._become_map()
            assert self.values is not None
            self.values.merge(other.values)
        for name, shape in other.fields.items():
            self.field(name).merge(shape)
        if not is_row:
            self._check_map()

    def field(self, name: str) -> Shape:
        """Return the shape of the field `name` of the objects; of a map, that of all values."""
        if self.values is not None:
            return self.values
        found = self.fields.get(name)
        if found is None:
            found = self.fields[name] = Shape()
        return found

    @property
    def is_sparse(self) -> bool:
        """Whether each object has few of all the fields that there are: their names are data."""
        num_objects = self.kinds.get("object", 0)
        return len(self.fields) > MAX_FIELDS and self.num_keys * _SPARSENESS < num_objects * len(self.fields)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, for another process."""
        plain: dict[str, Any] = {"kinds": self.kinds, "range": [str(self.low), str(self.high)], "keys": self.num_keys}
        plain["fields"] = {name: shape.as_json() for name, shape in self.fields.items()}
        if self.items is not None:
            plain["items"] = self.items.as_json()
        if self.values is not None:
            plain["values"] = self.values.as_json()
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Shape:
        """Return the shape that `as_json` wrote as `plain`."""
        shape = cls()
        shape.kinds = dict(plain["kinds"])
        shape.low, shape.high = map(int, plain["range"])
        shape.num_keys = plain["keys"]
        shape.fields = {name: cls.from_json(inner) for name, inner in plain["fields"].items()}
        shape.items = cls.from_json(plain["items"]) if "items" in plain else None
        shape.values = cls.from_json(plain["values"]) if "values" in plain else None
        return shape

    def _add_object(self, value: Mapping[str, Any], depth: int) -> None:
        self._count("object", 1)
        self.num_keys += len(value)
        for name, item in value.items():
            self.field(name).add(item, depth + 1)
        if depth:
            self._check_map()

    def _count(self, kind: str, num: int) -> None:
        self.kinds[kind] = self.kinds.get(kind, 0) + num

    def _check_map(self) -> None:
        if len(self.fields) > MAX_FIELDS and self.is_sparse:
            self._become_map()

    def _become_map(self) -> None:
        if self.values is None:
            values = Shape()
            for shape in self.fields.values():
                values.merge(shape)
            self.fields, self.values = {}, values


def merge_all(shapes: Iterable[Shape]) -> Shape:
    """Return the shape of all rows from the shapes of their parts."""
    whole = Shape()
    for shape in shapes:
        whole.merge(shape, is_row=True)
    return whole
