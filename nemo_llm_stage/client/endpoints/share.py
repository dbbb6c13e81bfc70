"""
Which worker asks which server, and how large its part of the server's limit is.

Every worker computes the same from the same list of servers; nothing is negotiated. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """
    One worker among those of a run.

    Attributes:
        index: From 0.
        count: Workers of the run.
    """

    index: int = 0
    count: int = 1


ALONE = WorkerPlace()


@dataclass(frozen=True, slots=True)
class Share:
    """
    One worker's part of one server.

    Attributes:
        position: Of the worker among those that share the server, from 0.
        count: Workers that share it.
    """

    position: int = 0
    count: int = 1

    def of(self, limit: int) -> int:
        """Return the worker's part of `limit`, at least 1; the parts of all workers sum up to `limit` or `count`."""
        return max(1, limit // self.count + (self.position < limit % self.count))


def shares_of(urls: Iterable[str], worker: WorkerPlace) -> dict[str, Share]:
    """
    Return base URL → share, for the servers that `worker` owns.

    With at least as many servers as workers, each server has one owner, and the workers own equally many (one more or
    less). With more workers than servers, each worker owns one server together with others.

    Source: rendezvous hashing, Thaler and Ravishankar, IEEE/ACM Trans. Networking 6 (1), 1998; with a cap for balance.
    """
    ordered = sorted(set(urls), key=_hash)
    if worker.count == 1:
        return dict.fromkeys(ordered, Share())
    if not ordered:
        return {}
    if len(ordered) < worker.count:
        place = worker.index % len(ordered)
        sharers = range(place, worker.count, len(ordered))
        return {ordered[place]: Share(sharers.index(worker.index), len(sharers))}
    return {url: Share() for url, owner in _owners(ordered, worker.count).items() if owner == worker.index}


def _owners(urls: list[str], num_workers: int) -> dict[str, int]:
    """Return base URL → index of its owner: the worker it likes best among those with the fewest servers allowed."""
    cap, num_over = divmod(len(urls), num_workers)
    loads = [0] * num_workers
    owners: dict[str, int] = {}
    for number, url in enumerate(urls):
        most = cap if number < len(urls) - num_over else cap + 1
        free = (worker for worker in range(num_workers) if loads[worker] < most)
        owners[url] = max(free, key=lambda worker: _hash(f"{worker} {url}"))
        loads[owners[url]] += 1
    return owners


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
