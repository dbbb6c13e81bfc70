"""
Values of Arrow arrays for comparison and for a look, also those that Python has no type for.

A year 10000, text that is not UTF-8, an unknown time zone: Arrow holds them, and so do files. Knows arrays; knows
nothing of files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from nemo_llm_stage.dataset.arrow_types import retyped

NO_PYTHON_VALUE = (pa.ArrowException, ValueError, OverflowError, TypeError, LookupError)
"""Raised by Arrow for a value without a Python form."""

_BITS = {1: pa.int8(), 2: pa.int16(), 4: pa.int32(), 8: pa.int64()}


def exact_values(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """
    Return what is equal for equal values and only for these, whatever the type; None for null.

    Times are numbers of their units, floats their bits, texts their bytes, structs tuples.
    """
    if isinstance(array, pa.ChunkedArray):
        return [value for chunk in array.chunks for value in exact_values(chunk)]
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return exact_values(array.storage)
    if pa.types.is_dictionary(kind):
        return exact_values(array.dictionary_decode())
    if pa.types.is_struct(kind):
        return structs(array, exact_values)
    if is_list_like(kind):
        return lists(array, exact_values)
    if pa.types.is_string_view(kind):
        array = array.cast(pa.large_string())
        return exact_values(array)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        array = array.view(pa.binary() if pa.types.is_string(kind) else pa.large_binary())
    elif (pa.types.is_temporal(kind) or pa.types.is_floating(kind)) and kind != pa.month_day_nano_interval():
        array = array.view(_BITS[kind.bit_width // 8])
    values: list[Any] = array.to_pylist()
    return values


def shown_values(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return plain Python values, and for those that Python has no type for a text in their place."""
    try:
        values: list[Any] = array.to_pylist()
    except NO_PYTHON_VALUE:
        return [_shown(scalar) for scalar in array]
    return values


def shown_rows(batch: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows as `shown_values`."""
    names, columns = batch.schema.names, [shown_values(column) for column in batch.columns]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def is_list_like(kind: pa.DataType) -> bool:
    """Whether a value of `kind` has items: a list of any layout, or a map."""
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
        pa.types.is_map,
    )
    return any(test(kind) for test in tests)


def structs(array: pa.Array, values_of: Callable[[pa.Array], list[Any]]) -> list[Any]:
    """Return the structs as tuples of their fields' values."""
    nulls = array.is_null().to_pylist()
    columns = [values_of(array.field(number)) for number in range(array.type.num_fields)]
    rows = zip(*columns, strict=True) if columns else itertools.repeat(())
    return [None if is_null else row for is_null, row in zip(nulls, rows, strict=False)]


def lists(array: pa.Array, values_of: Callable[[pa.Array], list[Any]]) -> list[Any]:
    """Return the lists of their items' values; of maps, lists of pairs."""
    if pa.types.is_map(array.type):
        array = retyped(array, pa.list_(pa.struct([array.type.key_field, array.type.item_field])))
    items = iter(values_of(array.flatten()))
    if pa.types.is_fixed_size_list(array.type):
        lengths = [None if is_null else array.type.list_size for is_null in array.is_null().to_pylist()]
    else:
        import pyarrow.compute as pc  # its import takes 0.1 s, which most jobs can do without

        lengths = pc.list_value_length(array).to_pylist()
    return [None if length is None else list(itertools.islice(items, length)) for length in lengths]


def _shown(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except NO_PYTHON_VALUE:
        try:
            return scalar.cast(pa.string()).as_py()
        except NO_PYTHON_VALUE:
            return str(exact_values(pa.array([scalar], scalar.type))[0])
