"""
Timestamps of old Parquet files (INT96), whose range is wider than that of nanoseconds in Arrow.

Read as nanoseconds, those outside the years 1677 to 2262 come out as others. Nothing in a footer shows them, so the
columns are read once. Knows Parquet files.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nemo_llm_stage.dataset.arrow_values import is_list_like
from nemo_llm_stage.dataset.parquet_file import IN_MICROSECONDS, open_parquet

_ROWS_PER_BATCH = 65_536


def needs_microseconds(raw: Any, metadata: pq.FileMetaData) -> bool:
    """
    Return whether the INT96 columns of the Parquet file `raw` must be read as microseconds.

    Raises:
        pyarrow.ArrowInvalid: They hold a time outside the range of nanoseconds, and one finer than a microsecond.
        OSError: The file cannot be read.
    """
    leaves = (metadata.schema.column(number) for number in range(metadata.num_columns))
    names = list(dict.fromkeys(leaf.path.split(".")[0] for leaf in leaves if leaf.physical_type == "INT96"))
    options: dict[str, Any] = {"batch_size": _ROWS_PER_BATCH, "columns": names}
    is_far = is_fine = False
    fine, coarse = open_parquet(raw), open_parquet(raw, **IN_MICROSECONDS)
    for group in range(metadata.num_row_groups):
        pairs = zip(
            fine.iter_batches(**options, row_groups=[group]),
            coarse.iter_batches(**options, row_groups=[group]),
            strict=True,
        )
        for nanoseconds, microseconds in pairs:
            for one, other in zip(nanoseconds.columns, microseconds.columns, strict=True):
                for ns, us in zip(_times(one), _times(other), strict=True):
                    is_same = _is_same(ns, us)
                    is_far = is_far or pc.all(is_same).as_py() is False
                    is_fine = is_fine or bool(pc.any(pc.and_(is_same, pc.not_equal(_rest(ns), 0))).as_py())
    if is_far and is_fine:
        raise pa.ArrowInvalid(
            f"its columns {', '.join(names)} (INT96) hold times outside the years 1677 to 2262 and times finer than a "
            "microsecond; no type of Arrow holds both"
        )
    return is_far


def _times(array: pa.Array) -> list[pa.Array]:
    """Return the timestamps within an array as integers, flat."""
    kind = array.type
    if pa.types.is_timestamp(kind):
        return [array.cast(pa.int64())]
    if pa.types.is_struct(kind):
        return [times for number in range(kind.num_fields) for times in _times(array.field(number))]
    if pa.types.is_map(kind):
        return [*_times(array.keys), *_times(array.items)]
    return _times(array.flatten()) if is_list_like(kind) else []


def _is_same(ns: pa.Array, us: pa.Array) -> pa.Array:
    """Whether nanoseconds and microseconds tell of the same times; they are rounded towards zero, or down."""
    return pc.less_equal(pc.abs(pc.subtract(pc.divide(ns, 1000), us)), 1)


def _rest(ns: pa.Array) -> pa.Array:
    return pc.subtract(ns, pc.multiply(pc.divide(ns, 1000), 1000))
