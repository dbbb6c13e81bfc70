"""
The load of an inference server: its Prometheus text becomes a `ServerLoad`.

Knows the names that servers use. Reads one line at a time, so the work grows with the length of the text alone;
whatever is odd becomes None. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_METRICS_BYTES = 1 << 20
"""A longer text is not read. vLLM's has some 100 kB."""

_MAX_LINE_BYTES = 8192
_MAX_SERIES = 4096
"""Lines with a name that we know; more are left out."""

_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')

_SHARD_LABELS = frozenset({b"tp_rank", b"pp_rank", b"moe_ep_rank", b"pid"})
"""Ranks that work on the same requests together, so that each of them tells the whole."""

Labels = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """
    How a server stands. None: it does not tell. Several engine ranks behind one server are summed.

    Attributes:
        server: "vllm", "sglang", "llama.cpp", "tgi", "dynamo" or "nim".
        running: Requests that generate.
        waiting: Requests in its queue.
        is_queue: Whether `waiting` counts a queue. False: it counts requests without a first token, prefill included,
            and how many may run is not known.
        kv_usage: Share of the KV cache in use, 0 to 1; of several ranks the fullest.
        kv_tokens: Size of the KV cache in tokens.
        max_running: Most requests that generate at the same time.
        num_preemptions: Requests thrown out of the KV cache since the server's start.
        output_tokens: Tokens generated since the server's start.
        hit_rate: Share of the prompt tokens since the server's start that came from the prefix cache, 0 to 1.
        prompt_speed: Prompt tokens that it computed a second since its start, on average.
    """

    server: str
    running: float
    waiting: float
    is_queue: bool = True
    kv_usage: float | None = None
    kv_tokens: float | None = None
    max_running: float | None = None
    num_preemptions: float | None = None
    output_tokens: float | None = None
    hit_rate: float | None = None
    prompt_speed: float | None = None


@dataclass(frozen=True, slots=True)
class _Names:
    """
    What one kind of server calls its metrics; of several names of a thing the first that is there counts.

    Attributes:
        server: The kind.
        running: Requests that generate, or with `is_inclusive` all that it has.
        waiting: Requests in the queue.
        is_inclusive: Whether `running` counts the waiting ones too.
        is_queue: Whether `waiting` counts a queue; False: requests without a first token.
        workers: Series of which there is one for each worker and rank that generates.
        running_per_worker: Gauges: most requests that generate at one of `workers`.
        blocks_per_worker: Gauges: the KV cache of one of `workers`, in blocks.
        block_tokens: Gauges: tokens in a block.
        kv_usage: Gauges from 0 to 1.
        kv_tokens: Gauges.
        kv_info: Gauges with the labels ``block_size`` and ``num_gpu_blocks``.
        max_running: Gauges.
        preemptions: Counters.
        output_tokens: Counters.
        hits: Counters of prompt tokens from the prefix cache.
        queries: Counters of prompt tokens looked up there.
        prompt_tokens: Counters of prompt tokens, those from the prefix cache too.
        prompt_s: Counters of the seconds that computing them took.
    """

    server: str
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    is_inclusive: bool = False
    is_queue: bool = True
    kv_usage: tuple[str, ...] = ()
    kv_tokens: tuple[str, ...] = ()
    kv_info: tuple[str, ...] = ()
    max_running: tuple[str, ...] = ()
    preemptions: tuple[str, ...] = ()
    output_tokens: tuple[str, ...] = ()
    hits: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()
    prompt_tokens: tuple[str, ...] = ()
    prompt_s: tuple[str, ...] = ()
    workers: tuple[str, ...] = ()
    running_per_worker: tuple[str, ...] = ()
    blocks_per_worker: tuple[str, ...] = ()
    block_tokens: tuple[str, ...] = ()


_SERVERS = (
    _Names(  # docs.vllm.ai, "Production Metrics", 0.4 to 0.32; gpu_… are the names before 0.10
        "vllm",
        running=("vllm:num_requests_running",),
        waiting=("vllm:num_requests_waiting",),
        kv_usage=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        kv_info=("vllm:cache_config_info",),
        preemptions=("vllm:num_preemptions_total", "vllm:num_preemptions"),
        output_tokens=("vllm:generation_tokens_total", "vllm:generation_tokens"),
        hits=("vllm:prefix_cache_hits_total", "vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits_total"),
        queries=("vllm:prefix_cache_queries_total", "vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries_total"),
        prompt_tokens=("vllm:prompt_tokens_total", "vllm:prompt_tokens"),
        prompt_s=("vllm:request_prefill_time_seconds_sum",),
    ),
    _Names(  # docs.sglang.io, "Production Metrics"
        "sglang",
        running=("sglang:num_running_reqs",),
        waiting=("sglang:num_queue_reqs",),
        kv_usage=("sglang:token_usage",),
        kv_tokens=("sglang:max_total_num_tokens",),
        preemptions=("sglang:num_retracted_requests_total",),
        output_tokens=("sglang:generation_tokens_total",),
        hits=("sglang:cached_tokens_total",),
        queries=("sglang:prompt_tokens_total",),
    ),
    _Names(  # llama.cpp, tools/server/README.md
        "llama.cpp",
        running=("llamacpp:requests_processing",),
        waiting=("llamacpp:requests_deferred",),
        kv_usage=("llamacpp:kv_cache_usage_ratio",),
        output_tokens=("llamacpp:tokens_predicted_total",),
        prompt_tokens=("llamacpp:prompt_tokens_total",),
        prompt_s=("llamacpp:prompt_seconds_total",),
    ),
    _Names(  # huggingface.co/docs/text-generation-inference, "Metrics"
        "tgi",
        running=("tgi_batch_current_size",),
        waiting=("tgi_queue_size",),
    ),
    _Names(  # docs.nvidia.com/dynamo, "Metrics Catalog"
        "dynamo",
        running=("dynamo_frontend_inflight_requests",),
        waiting=("dynamo_frontend_queued_requests",),
        is_inclusive=True,
        is_queue=False,
        output_tokens=("dynamo_frontend_output_tokens_total",),
        hits=("dynamo_frontend_cached_tokens_sum",),
        queries=("dynamo_frontend_input_sequence_tokens_sum",),
        workers=("dynamo_frontend_worker_last_time_to_first_token_seconds",),
        running_per_worker=("dynamo_frontend_model_max_num_seqs",),
        blocks_per_worker=("dynamo_frontend_model_total_kv_blocks",),
        block_tokens=("dynamo_frontend_model_kv_cache_block_size",),
    ),
    _Names(  # docs.nvidia.com/nim, "Observability", 1.x; later ones have vLLM's names
        "nim",
        running=("num_requests_running",),
        waiting=("num_requests_waiting",),
        kv_usage=("gpu_cache_usage_perc",),
        max_running=("num_request_max",),
        output_tokens=("generation_tokens_total",),
    ),
)


def parse_load(text: bytes) -> ServerLoad | None:
    """
    Return the load that `text` tells; None where it does not hold the running and waiting requests of a known server.

    Args:
        text: The body of a server's ``/metrics``, in Prometheus' text format or OpenMetrics.
    """
    if len(text) > MAX_METRICS_BYTES:
        return None
    series: dict[str, list[tuple[Labels, float]]] = {}
    for name, labels, value in _series_in(text):
        series.setdefault(name, []).append((labels, value))
    return next((load for names in _SERVERS if (load := _load_of(names, series)) is not None), None)


def _load_of(names: _Names, series: dict[str, list[tuple[Labels, float]]]) -> ServerLoad | None:
    def find(candidates: tuple[str, ...]) -> list[tuple[Labels, float]]:
        return next((series[name] for name in candidates if name in series), [])

    running, waiting = _sum(find(names.running)), _sum(find(names.waiting))
    if running is None or waiting is None:
        return None
    usage = [value for _, value in find(names.kv_usage) if value <= 1]
    num_workers = _num_workers(find(names.workers))
    blocks = num_workers * (_sum(find(names.blocks_per_worker)) or 0.0) * (_sum(find(names.block_tokens)) or 0.0)
    kv_info = sum(_kv_tokens_of(labels) for labels, _ in find(names.kv_info))
    max_running = _sum(find(names.max_running)) or num_workers * (_sum(find(names.running_per_worker)) or 0.0)
    if max_running and not names.is_queue:  # of those without a first token the others are in their prefill
        waiting = min(waiting, max(0.0, running - max_running))
    hits, queries = _sum(find(names.hits)), _sum(find(names.queries))
    computed, prompt_s = (_sum(find(names.prompt_tokens)) or 0.0) - (hits or 0.0), _sum(find(names.prompt_s))
    return ServerLoad(
        names.server,
        max(0.0, running - waiting) if names.is_inclusive else running,
        waiting,
        names.is_queue or max_running > 0,
        kv_usage=max(usage) if usage else None,
        kv_tokens=_sum(find(names.kv_tokens)) or kv_info or blocks or None,
        max_running=max_running or None,
        num_preemptions=_sum(find(names.preemptions)),
        output_tokens=_sum(find(names.output_tokens)),
        hit_rate=min(1.0, hits / queries) if hits is not None and queries else None,
        prompt_speed=computed / prompt_s if computed > 0 and prompt_s else None,
    )


def _series_in(text: bytes) -> Iterator[tuple[str, Labels, float]]:
    num_series = 0
    for line in text.split(b"\n"):
        if not line.startswith(_KNOWN_STARTS) or len(line) > _MAX_LINE_BYTES:
            continue
        head, brace, rest = line.partition(b"{")
        inside, _, tail = rest.rpartition(b"}") if brace else (b"", b"", line)
        fields = tail.split()
        name = (head if brace else fields[0]).decode("ascii", "replace")
        value = _number(fields, 0 if brace else 1)
        if name not in _KNOWN or value is None:
            continue
        yield name, dict(_LABEL.findall(inside)), value
        num_series += 1
        if num_series == _MAX_SERIES:
            return


def _number(fields: list[bytes], place: int) -> float | None:
    try:
        value = float(fields[place])
    except (ValueError, IndexError):
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _sum(series: Iterable[tuple[Labels, float]]) -> float | None:
    """The sum over ranks that have requests of their own; of ranks that share them, the largest value."""
    values: dict[tuple[tuple[bytes, bytes], ...], float] = {}
    for labels, value in series:
        owner = tuple(sorted(item for item in labels.items() if item[0] not in _SHARD_LABELS))
        values[owner] = max(value, values.get(owner, 0.0))
    return sum(values.values()) if values else None


def _num_workers(series: Iterable[tuple[Labels, float]]) -> int:
    """Workers that generate; one with ranks counts as so many."""
    ranks: dict[bytes, set[bytes]] = {}
    for labels, _ in series:
        if labels.get(b"worker_type", b"decode") == b"decode":
            ranks.setdefault(labels.get(b"worker_id", b""), set()).add(labels.get(b"dp_rank", b"none"))
    return sum(max(1, len(names - {b"none"})) for names in ranks.values())


def _kv_tokens_of(labels: Labels) -> float:
    size, blocks = labels.get(b"block_size", b""), labels.get(b"num_gpu_blocks", b"")
    is_known = size.isdigit() and blocks.isdigit() and len(size) + len(blocks) < 16
    return float(int(size) * int(blocks)) if is_known else 0.0


_KNOWN = frozenset(
    name
    for names in _SERVERS
    for group in (
        names.running,
        names.waiting,
        names.kv_usage,
        names.kv_tokens,
        names.kv_info,
        names.max_running,
        names.preemptions,
        names.output_tokens,
        names.hits,
        names.queries,
        names.prompt_tokens,
        names.prompt_s,
        names.workers,
        names.running_per_worker,
        names.blocks_per_worker,
        names.block_tokens,
    )
    for name in group
)
_KNOWN_STARTS = tuple(name.encode() for name in sorted(_KNOWN))
