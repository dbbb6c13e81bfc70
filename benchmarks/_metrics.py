"""
An inference server's own gauges, sampled while it is asked: vLLM, SGLang, llama.cpp and NIM under one set of names.

Reads the Prometheus text at ``/metrics``; a server without one gives no samples. Knows nothing of requests.
"""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

SAMPLE_S = 1.0
_TIMEOUT_S = 5.0
_LINE = re.compile(r"^(?:\w+:)?(\w+)(?:\{[^}]*\})? (\S+)", re.MULTILINE)

NAMES = {
    "running": ("num_requests_running", "num_running_reqs", "requests_processing"),
    "waiting": ("num_requests_waiting", "num_queue_reqs", "requests_deferred"),
    "kv_cache_use": ("kv_cache_usage_perc", "gpu_cache_usage_perc", "token_usage", "kv_cache_usage_ratio"),
    "cache_hit_rate": ("cache_hit_rate",),
    "cache_queries": ("prefix_cache_queries_total", "gpu_prefix_cache_queries_total"),
    "cache_hits": ("prefix_cache_hits_total", "gpu_prefix_cache_hits_total"),
    "preemptions": ("num_preemptions_total",),
}
"""
What each figure is called, without the server's prefix (``vllm:`` …); of several names the first that is there counts.

Sources: vLLM 0.32's /metrics, SGLang's and llama.cpp's documentation of theirs, NIM's (vLLM's names without prefix).
"""

_SHARES = frozenset({"kv_cache_use", "cache_hit_rate"})

Gauges = dict[str, float]


def parse_gauges(text: str) -> Gauges:
    """Return the figures found in a ``/metrics`` text: counts summed over engines and models, shares averaged."""
    found: dict[str, list[float]] = {}
    for name, value in _LINE.findall(text):
        found.setdefault(name, []).append(float(value))
    gauges = {}
    for figure, names in NAMES.items():
        values = next((found[name] for name in names if name in found), None)
        if values:
            gauges[figure] = sum(values) / (len(values) if figure in _SHARES else 1)
    return gauges


@dataclass
class MetricsWatch:
    """
    Samples the gauges of all servers once a second while its ``with`` block runs.

    Args:
        base_urls: As for a client; ``/metrics`` is looked for beside ``/v1``.
        key: Sent as bearer token where given.

    Attributes:
        samples: (monotonic seconds, gauges), summed or averaged over the servers.
    """

    base_urls: Sequence[str]
    key: str | None = None
    samples: list[tuple[float, Gauges]] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Start to sample."""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Take a last sample and stop."""
        self._is_over.set()
        self._thread.join()

    def between(self, start_monotonic_s: float, end_monotonic_s: float) -> Gauges:
        """Return means of the gauges between two times, and what the counters rose by."""
        inside = [gauges for at, gauges in self.samples if start_monotonic_s <= at <= end_monotonic_s]
        summary = {
            name: sum(gauges[name] for gauges in having) / len(having)
            for name in ("running", "waiting", "kv_cache_use", "cache_hit_rate")
            if (having := [gauges for gauges in inside if name in gauges])
        }
        rises = {
            name: having[-1][name] - having[0][name]
            for name in ("cache_queries", "cache_hits", "preemptions")
            if (having := [gauges for gauges in inside if name in gauges])
        }
        if rises.get("cache_queries"):
            summary["cache_hit_rate"] = rises.get("cache_hits", 0.0) / rises["cache_queries"]
        if "preemptions" in rises:
            summary["preemptions"] = rises["preemptions"]
        return summary

    def _watch(self) -> None:
        while True:
            is_last = self._is_over.wait(0.0 if not self.samples else SAMPLE_S)
            gauges = self._look()
            if gauges is None:
                return
            self.samples.append((time.monotonic(), gauges))
            if is_last:
                return

    def _look(self) -> Gauges | None:
        texts = []
        for base_url in self.base_urls:
            url = re.sub(r"/v1/?$", "", base_url) + "/metrics"
            headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
            try:
                with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as answer:
                    texts.append(answer.read().decode())
            except OSError:
                continue
        return parse_gauges("\n".join(texts)) if texts else None
