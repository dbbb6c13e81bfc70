"""
The compact protocol of Thrift, in which the footers of Parquet files are written, as far as they use it.

Pure. Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Iterator

_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, BINARY, LIST, _SET, _MAP, STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12

Fields = dict[int, tuple[int, bytes]]
"""Of a struct: id → (wire type, the value's bytes)."""


def encode_text(text: str) -> bytes:
    """Return a string as the value of a field."""
    data, num = text.encode(), len(text.encode())
    header = bytearray()
    while num > 127:
        header.append(num & 127 | 128)
        num >>= 7
    return bytes([*header, num]) + data


def encode(fields: Fields) -> bytes:
    """Return a struct as bytes."""
    parts, last = [], 0
    for key, (wire, value) in sorted(fields.items()):
        assert 0 < key - last < 16
        parts.append(bytes([(key - last) << 4 | wire]) + value)
        last = key
    return b"".join(parts) + bytes([_STOP])


def fields_of(data: bytes, place: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (id, wire type, start, stop) for each field of the struct at `place`."""
    key = 0
    while data[place] != _STOP:
        delta, wire = data[place] >> 4, data[place] & 15
        place += 1
        if delta:
            key += delta
        else:
            value, place = varint(data, place)
            key = (value >> 1) ^ -(value & 1)
        stop = _skip(data, place, wire)
        yield key, wire, place, stop
        place = stop


def _skip(data: bytes, place: int, wire: int) -> int:
    """Return where the value of a field ends."""
    if wire in (_TRUE, _FALSE):
        return place
    if wire == _BYTE:
        return place + 1
    if wire == _DOUBLE:
        return place + 8
    if wire == BINARY:
        num, place = varint(data, place)
        return place + num
    if wire == STRUCT:
        for *_, stop in fields_of(data, place):
            place = stop
        return place + 1
    if wire in (LIST, _SET):
        kind = data[place] & 15
        num, place = list_header(data, place)
        for _ in range(num):
            place = place + 1 if kind in (_TRUE, _FALSE) else _skip(data, place, kind)
        return place
    if wire == _MAP:
        raise ValueError("a Parquet footer has no maps")
    return varint(data, place)[1]


def list_header(data: bytes, place: int) -> tuple[int, int]:
    """Return the number of items of the list at `place`, and where the first one is."""
    num = data[place] >> 4
    return (num, place + 1) if num < 15 else varint(data, place + 1)


def varint(data: bytes, place: int) -> tuple[int, int]:
    """Return the number at `place`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7


def zigzag(data: bytes) -> int:
    """Return the signed number that a field holds."""
    value = varint(data, 0)[0]
    return (value >> 1) ^ -(value & 1)
