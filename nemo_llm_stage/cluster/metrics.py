"""
Hands metrics to Ray, whose dashboard agents give them to Prometheus.

Every series is a gauge of Ray's, set to what the job has counted: its name is that on a job's own port with ``ray_``
before it, and nothing is done per request. Knows Ray; knows nothing of what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


class RayMetrics:
    """The series of one job. Needs a connected Ray."""

    def __init__(self) -> None:
        self._gauges: dict[str, Any] = {}
        self._known: set[tuple[str, tuple[tuple[str, str], ...]]] = set()

    def set(self, series: Iterable[tuple[str, Mapping[str, str], float]]) -> None:
        """
        Set each series, of a name, labels and a value; series of one name have the same names of labels.

        One that was set before and is not among them ends, e.g. the time left in an outage: Ray drops what is not a
        number.
        """
        from ray.util.metrics import Gauge

        found = set()
        for name, labels, value in series:
            gauge = self._gauges.get(name)
            if gauge is None:
                gauge = self._gauges[name] = Gauge(name, tag_keys=tuple(labels))
            gauge.set(value, tags=dict(labels))
            found.add((name, tuple(labels.items())))
        for name, labels_of_old in self._known - found:
            self._gauges[name].set(math.nan, tags=dict(labels_of_old))
        self._known = found
