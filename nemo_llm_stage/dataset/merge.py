"""
The columns of several files as those of one dataset: of each column, the type that holds the values of all files.

Pure. Knows Arrow schemas; knows nothing of how files are read. Types that only some values fit are for `is_widening` to
tell, so that those values can be looked at before anything is paid for.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from nemo_llm_stage.dataset.parquet_file import PLAIN_KEY
from nemo_llm_stage.errors import InputError

UNITS = ("s", "ms", "us", "ns")
"""Of times, from coarse to fine."""

_DROPPED = (b"nemo_llm_stage", b"org.apache.spark.sql.parquet.row.metadata")
"""Of a file's metadata: the counts of an earlier job, and a list of columns by which Spark would not see new ones."""

_MAX_DIGITS_128, _MAX_DIGITS_256 = 38, 76
_DIGITS_OF_BITS = {8: 3, 16: 5, 32: 10, 64: 20}


class NoCommonTypeError(Exception):
    """There is no type that holds all values of two types."""


class SchemaMerger:
    """
    Collects the schemas of files, one after the other.

    A column that a file lacks is null there. Metadata of the whole schema is that of the first file that has it; of a
    column, what all files that have the column agree on.
    """

    def __init__(self) -> None:
        self._fields: dict[str, pa.Field] = {}
        self._decided_by: dict[str, str] = {}
        self._metadata: dict[bytes, bytes] = {}
        self._num_files = 0

    @property
    def schema(self) -> pa.Schema:
        """Of all files so far."""
        return pa.schema(list(self._fields.values()), metadata=self._metadata or None)

    def add(self, path: str, schema: pa.Schema) -> None:
        """
        Take in the schema of the file at `path`.

        Raises:
            InputError: It has a column twice, or one that does not go together with that of an earlier file.
        """
        check_names(path, schema.names)
        for name in self._fields.keys() - set(schema.names):
            self._fields[name] = self._fields[name].with_nullable(True)
        for field in schema:
            before = self._fields.get(field.name)
            if before is None:
                self._fields[field.name] = field.with_nullable(True) if self._num_files else field
                self._decided_by[field.name] = path
                continue
            try:
                merged = merge_fields(before, field)
            except NoCommonTypeError:
                raise InputError(
                    f"column {field.name!r} is {before.type} in {self._decided_by[field.name]!r} and {field.type} in "
                    f"{path!r}, and no type holds the values of both. Convert the column in one of them."
                ) from None
            if not merged.type.equals(before.type):
                self._decided_by[field.name] = path
            self._fields[field.name] = merged
        kept = {key: value for key, value in (schema.metadata or {}).items() if key not in _DROPPED}
        if self._num_files and PLAIN_KEY not in kept:
            self._metadata.pop(PLAIN_KEY, None)
        if self._num_files and PLAIN_KEY not in self._metadata:
            kept.pop(PLAIN_KEY, None)
        self._metadata = {**kept, **self._metadata}
        self._num_files += 1


def merge_fields(left: pa.Field, right: pa.Field) -> pa.Field:
    """
    Return the field that holds the values of both: nullable if one is, with the metadata that both have.

    Raises:
        NoCommonTypeError: There is none.
    """
    if pa.types.is_null(left.type):
        return right.with_name(left.name).with_nullable(True)
    if pa.types.is_null(right.type):
        return left.with_nullable(True)
    others = (right.metadata or {}).items()
    mine = (left.metadata or {}).items()
    metadata = {key: value for key, value in mine if (key, value) in others}
    metadata |= {key: value for key, value in (*mine, *others) if key.startswith(b"nemo_llm_stage:json")}
    is_nullable = left.nullable or right.nullable
    return pa.field(left.name, common_type(left.type, right.type), is_nullable, metadata or None)


def common_type(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    """
    Return the narrowest type for the values of both; whether all of them fit it, `is_widening` tells.

    Raises:
        NoCommonTypeError: There is none.
    """
    if left.equals(right):
        return left
    if pa.types.is_null(left) or pa.types.is_null(right):
        return right if pa.types.is_null(left) else left
    if pa.types.is_dictionary(left) or pa.types.is_dictionary(right):
        return _common_dictionary(left, right)
    for common in (_common_text, _common_number, _common_time, _common_nested):
        kind = common(left, right)
        if kind is not None:
            return kind
    raise NoCommonTypeError


def is_widening(narrow: pa.DataType, wide: pa.DataType) -> bool:
    """Whether every value of `narrow` is one of `wide`, to which `common_type` has led."""
    if narrow.equals(wide) or pa.types.is_null(narrow):
        return True
    if pa.types.is_dictionary(narrow):
        return is_widening(narrow.value_type, wide.value_type if pa.types.is_dictionary(wide) else wide)
    if pa.types.is_integer(narrow):
        if pa.types.is_floating(wide):
            num_exact_bits: int = {16: 11, 32: 24}.get(wide.bit_width, 53)
            return bool(narrow.bit_width <= num_exact_bits)
        return True
    if pa.types.is_date(narrow) and pa.types.is_timestamp(wide):
        return bool(wide.unit != "ns")
    if pa.types.is_date(narrow):
        return bool(pa.types.is_date32(narrow) or pa.types.is_timestamp(wide))
    if pa.types.is_timestamp(narrow) or pa.types.is_duration(narrow):
        return bool(narrow.unit == wide.unit)
    if pa.types.is_nested(narrow):
        return _is_widening_nested(narrow, wide)
    return True


def check_names(path: str, names: Sequence[str]) -> None:
    """
    Refuse a file that has a column twice.

    Raises:
        InputError: It has.
    """
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path!r} has more than one column {name!r}; rename or drop all but one.")


def _common_dictionary(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    if not (pa.types.is_dictionary(left) and pa.types.is_dictionary(right)):
        plain = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (left, right)]
        return common_type(*plain)
    if not left.value_type.equals(right.value_type):
        return common_type(left.value_type, right.value_type)
    index = max(left.index_type, right.index_type, key=lambda kind: kind.bit_width)
    return pa.dictionary(index, left.value_type, ordered=left.ordered and right.ordered)


def _common_text(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    kinds = (left, right)
    if all(map(_is_text, kinds)):
        return pa.large_string() if any(map(pa.types.is_large_string, kinds)) else pa.string()
    if all(map(_is_bytes, kinds)):
        return pa.large_binary() if any(map(pa.types.is_large_binary, kinds)) else pa.binary()
    return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(test(kind) for test in tests)


def _common_number(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    kinds = (left, right)
    if all(map(pa.types.is_integer, kinds)):
        return _common_integer(left, right)
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        return _common_float(left, right)
    if all(pa.types.is_integer(kind) or pa.types.is_decimal(kind) for kind in kinds):
        return _common_decimal(left, right)
    return None


def _common_integer(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    if pa.types.is_signed_integer(left) == pa.types.is_signed_integer(right):
        return left if left.bit_width >= right.bit_width else right
    signed, unsigned = (left, right) if pa.types.is_signed_integer(left) else (right, left)
    num_bits = max(signed.bit_width, 2 * unsigned.bit_width)
    wider = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
    return wider.get(num_bits) or pa.decimal128(_DIGITS_OF_BITS[64], 0)


def _common_float(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    num_bits = max(2 * kind.bit_width if pa.types.is_integer(kind) else kind.bit_width for kind in (left, right))
    return {16: pa.float16(), 32: pa.float32()}.get(num_bits) or pa.float64()


def _common_decimal(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    sizes = [
        (_DIGITS_OF_BITS[kind.bit_width], 0) if pa.types.is_integer(kind) else (kind.precision - kind.scale, kind.scale)
        for kind in (left, right)
    ]
    scale = max(scale for _, scale in sizes)
    num_digits = max(whole for whole, _ in sizes) + scale
    if num_digits > _MAX_DIGITS_256:
        raise NoCommonTypeError
    return pa.decimal128(num_digits, scale) if num_digits <= _MAX_DIGITS_128 else pa.decimal256(num_digits, scale)


def _common_time(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    kinds = (left, right)
    if all(map(pa.types.is_date, kinds)):
        return pa.date32()
    stamps = [kind for kind in kinds if pa.types.is_timestamp(kind)]
    if stamps and all(pa.types.is_timestamp(kind) or pa.types.is_date(kind) for kind in kinds):
        zones = {kind.tz for kind in stamps}
        if None in zones and len(zones) > 1:
            raise NoCommonTypeError  # local times are at no one instant
        if len(stamps) == 1 and stamps[0].tz is not None:
            raise NoCommonTypeError
        return pa.timestamp(_finest(stamps), zones.pop() if len(zones) == 1 else "UTC")
    if all(map(pa.types.is_duration, kinds)):
        return pa.duration(_finest(kinds))
    if all(map(pa.types.is_time, kinds)):
        unit = _finest(kinds)
        return pa.time32(unit) if unit in UNITS[:2] else pa.time64(unit)
    return None


def _finest(kinds: Sequence[pa.DataType]) -> str:
    units: list[str] = [kind.unit for kind in kinds]
    return max(units, key=UNITS.index)


def _common_nested(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    kinds = (left, right)
    if all(map(pa.types.is_struct, kinds)):
        return _common_struct(left, right)
    if all(map(pa.types.is_map, kinds)):
        key = common_type(left.key_type, right.key_type)
        return pa.map_(key, merge_fields(left.item_field, right.item_field))
    if all(map(_is_list, kinds)):
        value = merge_fields(left.value_field, right.value_field)
        if all(map(pa.types.is_fixed_size_list, kinds)) and left.list_size == right.list_size:
            return pa.list_(value, left.list_size)
        is_large = any(pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind) for kind in kinds)
        return pa.large_list(value) if is_large else pa.list_(value)
    return None


def _common_struct(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    names = [field.name for kind in (left, right) for field in kind]
    if any(len({field.name for field in kind}) < kind.num_fields for kind in (left, right)):
        raise NoCommonTypeError  # nobody could say which of two fields of one name belongs to which
    fields = []
    for name in dict.fromkeys(names):
        found = [kind.field(name) for kind in (left, right) if kind.get_field_index(name) >= 0]
        fields.append(merge_fields(*found) if len(found) == 2 else found[0].with_nullable(True))
    return pa.struct(fields)


def _is_list(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(test(kind) for test in tests)


def _is_widening_nested(narrow: pa.DataType, wide: pa.DataType) -> bool:
    if pa.types.is_struct(narrow):
        return all(is_widening(field.type, wide.field(field.name).type) for field in narrow)
    if pa.types.is_map(narrow):
        return is_widening(narrow.key_type, wide.key_type) and is_widening(narrow.item_type, wide.item_type)
    return is_widening(narrow.value_type, wide.value_type)
