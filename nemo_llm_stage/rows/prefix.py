"""
The order of rows in which a server's prefix cache helps most: prompts that begin alike stand together.

Pure. Knows prompts as bytes; knows nothing of rows, servers or time.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

BLOCK_BYTES = 64
"""Shortest prefix that counts. Source: vLLM caches whole blocks of 16 tokens, about 64 bytes of English."""

NUM_LEVELS = 10
"""Prefixes of 64, 128, 256 … 32,768 bytes beyond the common one, in whole blocks, are compared."""

NUM_GUESSED = 32
"""Prompts from which it is guessed what all have in common, so that they need not be looked at twice."""

MAX_GROUP_SHARE = 0.25
"""A prefix that more of the prompts have makes no group."""

MIN_SHARED = 0.05
"""Sharing less than this share of all prompt bytes is not worth an order of its own."""


@dataclass(frozen=True, slots=True)
class PrefixOrder:
    """
    An order of prompts.

    Attributes:
        indices: Of the prompts, in the new order: groups that share a prefix one after another, each group and each
            member in the order of first appearance.
        num_common_bytes: Length of the prefix that all prompts share.
        shared: Share of all prompt bytes, 0 to 1, that stand in a prefix which some earlier prompt of the new order
            has too, the common prefix not counted. A cache that holds one group saves about this much prompt work.
        shared_as_given: The same for the order as given, where only the prompt before counts.
        groups: For each prompt, in the order as given, a number that it has in common with those that begin like it;
            None where no other does. No group has more than a quarter of the prompts: what so many share is no reason
            to send them to one server. The number is the same in each process, so that several workers send a group
            to the same server.
    """

    indices: list[int]
    num_common_bytes: int
    shared: float
    shared_as_given: float
    groups: list[int | None]

    @property
    def has_groups(self) -> bool:
        """Whether prompts that begin alike should go to one server: 5 % of the prompt bytes are shared in groups."""
        return self.shared >= MIN_SHARED and any(group is not None for group in self.groups)

    @property
    def is_useful(self) -> bool:
        """Whether the new order shares at least 5 % of the prompt bytes more than the order as given."""
        return self.shared - self.shared_as_given >= MIN_SHARED


def order_by_prefix(prompts: Sequence[bytes]) -> PrefixOrder:
    """
    Return the order in which each prompt shares as long a prefix as possible with the one before it.

    Prefixes are compared at doubling lengths by checksum, so the cost does not depend on what they hold. Grouping
    from the longest shared prefix to the shortest is what a depth-first walk of a prefix tree does, which has the
    highest hit rate a cache of one path can have. Source: SGLang, arXiv 2312.07104, theorem 3.1.

    Args:
        prompts: Taken one after another, about once, and not held: they may be made as they are taken. An empty one
            stands for a row without a prompt.
    """
    common = _guess_common(prompts)
    seen = _look(prompts, common)
    if seen.num_common_bytes < common:  # the few from which it was guessed had more in common
        seen = _look(prompts, seen.num_common_bytes)
    keys, common = seen.keys, seen.num_common_bytes
    if len({levels[0] for levels in keys}) == len(keys):  # nothing else is shared
        return PrefixOrder(list(range(len(keys))), common, 0.0, 0.0, [None] * len(keys))
    indices = _depth_first(range(len(keys)), keys, 0)
    own = [max(0, length - common) for length in seen.lengths]
    total = sum(seen.lengths) or 1
    shared, as_given = (_shared_bytes(keys, own, order) / total for order in (indices, range(len(keys))))
    return PrefixOrder(indices, common, shared, as_given, _groups(keys))


def _guess_common(prompts: Sequence[bytes]) -> int:
    """Return how many bytes a few of the prompts begin with, no matter which."""
    alike: bytes | None = None
    for place in range(0, len(prompts), max(1, len(prompts) // NUM_GUESSED)):
        if prompt := prompts[place]:
            alike = prompt if alike is None else alike[: common_prefix((alike, prompt))]
    return len(alike or b"")


class _Seen(NamedTuple):
    """Of prompts: the checksums of each one's prefixes, their lengths as far as compared, and what all begin with."""

    keys: list[list[int]]
    lengths: list[int]
    num_common_bytes: int


def _look(prompts: Iterable[bytes], common: int) -> _Seen:
    """Look at prompts one by one. The keys are of use if the prompts have `common` bytes in common, or more."""
    start = common // BLOCK_BYTES * BLOCK_BYTES  # with a byte more or less in common the groups have the same numbers
    stops = [-(-common // BLOCK_BYTES) * BLOCK_BYTES + (BLOCK_BYTES << level) for level in range(NUM_LEVELS)]
    keys: list[list[int]] = []
    lengths: list[int] = []
    alike: bytes | None = None
    for prompt in prompts:
        keys.append(_level_keys(prompt, start, stops))
        lengths.append(min(len(prompt), stops[-1]))
        if prompt and (alike is None or not prompt.startswith(alike)):
            alike = prompt[:common] if alike is None else alike[: common_prefix((alike, prompt))]
    return _Seen(keys, lengths, len(alike or b""))


def _depth_first(indices: Sequence[int], keys: Sequence[Sequence[int]], level: int) -> list[int]:
    """Return prompts that share a prefix one after another, and of these those that share a longer one."""
    if len(indices) < 3 or level == len(keys[0]):
        return list(indices)
    alike: dict[int, list[int]] = {}
    for index in indices:
        alike.setdefault(keys[index][level], []).append(index)
    if len(alike) == len(indices):
        return list(indices)
    return [index for members in alike.values() for index in _depth_first(members, keys, level + 1)]


def _groups(keys: Sequence[Sequence[int]]) -> list[int | None]:
    """Return for each prompt the key of its shortest prefix that at most `MAX_GROUP_SHARE` of the prompts have."""
    most = max(2, int(len(keys) * MAX_GROUP_SHARE))
    groups: list[int | None] = [None] * len(keys)
    left: Iterable[int] = range(len(keys))
    for level in range(len(keys[0])):
        counts = Counter([keys[index][level] for index in left])
        for index in left:
            if 2 <= counts[keys[index][level]] <= most:
                groups[index] = keys[index][level]
        left = [index for index in left if counts[keys[index][level]] > most]
    return groups


def _level_keys(prompt: bytes, start: int, stops: Sequence[int]) -> list[int]:
    """Return the checksum of each prefix without its first `start` bytes, which all have; of a short one the last."""
    keys = []
    key = 0
    for stop in stops:
        key = zlib.crc32(prompt[start:stop], key)
        keys.append(key)
        if stop >= len(prompt):
            return keys + [key] * (len(stops) - len(keys))
        start = stop
    return keys


def _shared_bytes(keys: Sequence[Sequence[int]], own: Sequence[int], order: Sequence[int]) -> int:
    """
    Return the bytes that each prompt shares with the one before it, at whole levels.

    Args:
        keys: Checksums of each prompt's prefixes.
        own: Bytes of each prompt beyond the common prefix.
        order: Of the prompts.
    """
    total = 0
    for before, after in pairwise(order):
        shared = 0
        for level, (one, other) in enumerate(zip(keys[before], keys[after], strict=True)):
            if one != other:
                break
            shared = BLOCK_BYTES << level
        total += min(shared, own[after])
    return total


def common_prefix(prompts: Sequence[bytes]) -> int:
    """Return how many bytes all of `prompts` share at their beginning."""
    if not prompts:
        return 0
    first, last = min(prompts), max(prompts)
    stop = min(len(first), len(last))
    if first[:stop] == last[:stop]:
        return stop
    low, high = 0, stop
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if first[:middle] == last[:middle] else (low, middle)
    return low
