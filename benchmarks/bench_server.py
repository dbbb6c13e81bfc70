"""
How many requests in flight does this server want, how fast is it then, and what does a million rows cost?

Asks a real endpoint (vLLM, SGLang, NIM, llama.cpp, any OpenAI-compatible server) with real prompts, through the
package's own stage, at one concurrency after another. Rates are those of the steady part of each level, while all
permits are in use; every level asks rows of its own, so that the prefix cache knows no more of them than it would in a
job. The server's /metrics are sampled beside it. On a cluster:

    ray job submit --working-dir . -- python benchmarks/bench_server.py --base-url http://host:8000/v1 --input s3://…

--compare takes an offline run's JSON: what `vllm bench throughput --output-json` writes (elapsed_time, num_requests …),
or {"rows_per_s": …, "output_tokens_per_s": …}.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import random
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _metrics import MetricsWatch
from _report import add_plot_option, make_parser, new_figure, percentiles, save_figure, show

from nemo_llm_stage import AsyncHTTPClient, GenerationConfig, LLMStage, RowResult

KNEE = 0.95
"""The knee is the lowest concurrency that reaches this share of the best rate."""

MIN_ROWS = 64
COLUMN = "answer"
COLUMNS = (
    "in flight", "rows/s", "in tok/s", "out tok/s", "p50 s", "p90 s", "p99 s", "failed", "cut off",
    "running", "waiting", "KV use", "cache hits", "$/M rows",
)  # fmt: skip


def read_rows(path: str | None, max_rows: int) -> list[dict[str, Any]]:
    """Return rows of a Parquet or JSONL input, or of the running Python's documentation, in an order of their own."""
    if path is None:
        from nemo_llm_stage.embedded.corpus import python_docs

        rows: list[dict[str, Any]] = python_docs(max_rows, max_chars=2_000).to_pylist()
    else:
        from nemo_llm_stage.dataset.files import find_files
        from nemo_llm_stage.dataset.plan import make_plan
        from nemo_llm_stage.dataset.read import read_partition

        plan = make_plan(find_files(path), scan_input="sample")
        tables = (table for part in plan.partitions for table in read_partition(part, plan.schema, rows_per_chunk=1024))
        rows = list(itertools.islice((row for table in tables for row in table.to_pylist()), max_rows))
    random.Random(0).shuffle(rows)  # so that no level gets the long ones
    return rows


def first_model(base_url: str, key: str | None) -> str:
    """Return the first model that the server lists."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with urllib.request.urlopen(urllib.request.Request(f"{base_url}/models", headers=headers), timeout=30) as answer:
        return str(json.load(answer)["data"][0]["id"])


def run_level(
    options: argparse.Namespace, model: str, concurrency: int, rows: Sequence[dict[str, Any]], watch: MetricsWatch
) -> dict[str, Any]:
    """Ask `rows` with `concurrency` in flight and return what came of it."""
    client = AsyncHTTPClient(
        options.base_url, max_concurrent_requests=concurrency, api_key_env=options.api_key_env, timeout=options.timeout
    )
    config = GenerationConfig(max_tokens=options.max_tokens, temperature=options.temperature)
    stage = LLMStage(
        client=client, model=model, prompt=options.prompt, output_column=COLUMN,
        generation_config=config, deduplicate=False,
    )  # fmt: skip
    done: list[tuple[float, RowResult]] = []
    try:
        stage.check_server()
        started_s = time.monotonic()
        stage.submit(rows, on_done=lambda row: done.append((time.monotonic(), row[COLUMN]))).result()
    finally:
        stage.close()
    return summarize(options, concurrency, started_s, done, watch)


def summarize(
    options: argparse.Namespace,
    concurrency: int,
    started_s: float,
    done: Sequence[tuple[float, RowResult]],
    watch: MetricsWatch,
) -> dict[str, Any]:
    """Return the figures of one level; its steady part lies between the first and the last `concurrency` answers."""
    edge = min(concurrency, len(done) // 4)
    start_s, end_s = done[edge - 1][0] if edge else started_s, done[-edge - 1][0]
    steady = [result for _, result in done[edge : len(done) - edge]]
    span_s = max(end_s - start_s, 1e-9)
    usages = [result.completion.usage for result in steady if result.completion and result.completion.usage]
    latencies = [r.completion.latency_s for _, r in done if r.completion and r.completion.latency_s is not None]
    answered = [result for _, result in done if result.error is None]
    rows_per_s = sum(result.error is None for result in steady) / span_s
    price_per_s = options.gpu_price * options.num_gpus / 3600
    return {
        "concurrency": concurrency,
        "rows": len(done),
        "seconds": done[-1][0] - started_s,
        "rows_per_s": rows_per_s,
        "rows_per_s_whole": len(answered) / (done[-1][0] - started_s),
        "input_tokens_per_s": sum(usage.input_tokens or 0 for usage in usages) / span_s,
        "output_tokens_per_s": sum(usage.output_tokens or 0 for usage in usages) / span_s,
        "latency_s": percentiles(latencies),
        "errors": collections.Counter(result.error_kind for _, result in done if result.error is not None),
        "num_cut_off": sum("length" in result.completion.finish_reasons for result in answered if result.completion),
        "server": watch.between(start_s, end_s),
        "dollars_per_million_rows": price_per_s / rows_per_s * 1e6 if price_per_s and rows_per_s else None,
    }


def read_offline(path: Path) -> dict[str, float]:
    """Return rows/s and tokens/s of an offline run."""
    figures = json.loads(path.read_text())
    known = {
        "rows_per_s": ("rows_per_s", "requests_per_second", "request_throughput"),
        "output_tokens_per_s": ("output_tokens_per_s", "output_throughput"),
        "all_tokens_per_s": ("all_tokens_per_s", "tokens_per_second", "total_token_throughput"),
    }
    offline = {
        name: float(next(figures[key] for key in keys if key in figures))
        for name, keys in known.items()
        if any(key in figures for key in keys)
    }
    if not offline:
        sys.exit(f"{path} holds none of {', '.join(key for keys in known.values() for key in keys)}")
    return offline


def set_beside(levels: Sequence[dict[str, Any]], offline: dict[str, float]) -> Iterator[str]:
    """Yield a line for each figure of the offline run, with the share of it that the best level reaches."""
    for name, figure in offline.items():
        if name == "all_tokens_per_s":
            best = max(level["input_tokens_per_s"] + level["output_tokens_per_s"] for level in levels)
        else:
            best = max(level[name] for level in levels)
        yield f"offline {name.replace('_per_s', '').replace('_', ' ')}: {figure:,.1f}/s; here {best / figure:.1%} of it"


def cells_of(level: dict[str, Any]) -> list[str]:
    """Return a level as a row of the table."""

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        f"{level['concurrency']:,}",
        f"{level['rows_per_s']:,.2f}",
        f"{level['input_tokens_per_s']:,.0f}",
        f"{level['output_tokens_per_s']:,.0f}",
        *(shown(value, ".2f") for value in level["latency_s"].values()),
        f"{sum(level['errors'].values()):,}",
        f"{level['num_cut_off']:,}",
        *(shown(level["server"].get(name), ",.0f") for name in ("running", "waiting")),
        *(shown(level["server"].get(name), ".0%") for name in ("kv_cache_use", "cache_hit_rate")),
        shown(level["dollars_per_million_rows"], ",.2f"),
    ]


def draw(
    levels: Sequence[dict[str, Any]], watch: MetricsWatch, offline: dict[str, float], knee: int, path: Path
) -> None:
    """Draw rate and latency over the concurrency, and the server's gauges over time."""
    figure, (rates, latencies, gauges) = new_figure(3)
    at = [level["concurrency"] for level in levels]
    rates.plot(at, [level["rows_per_s"] for level in levels], "o-", label="rows/s")
    if "rows_per_s" in offline:
        rates.axhline(offline["rows_per_s"], linestyle="--", color="grey", label="offline")
    rates.axvline(knee, linestyle=":", color="grey", label=f"knee: {knee}")
    for point in levels[0]["latency_s"]:
        latencies.plot(at, [level["latency_s"][point] for level in levels], "o-", label=point)
    for panel, label in ((rates, "rows/s"), (latencies, "latency, s")):
        panel.set_xscale("log", base=2)
        panel.set(ylim=(0, None), xlabel="requests in flight", ylabel=label)
        panel.legend()
    for name in ("running", "waiting"):
        points = [(when - watch.samples[0][0], sample[name]) for when, sample in watch.samples if name in sample]
        if points:
            gauges.plot(*zip(*points, strict=True), label=name)
    gauges.set(xlabel="seconds", ylabel="requests on the server")
    gauges.legend()
    save_figure(figure, path)


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__)
    parser.add_argument("--base-url", required=True, nargs="+", help="server, or servers that are asked in turn")
    parser.add_argument("--model", help="name on the server (the first it lists)")
    parser.add_argument("--api-key-env", help="environment variable that holds the key")
    parser.add_argument("--input", help="Parquet or JSONL with the rows (the documentation of the running Python)")
    parser.add_argument(
        "--prompt", default="Summarize in one sentence:\n\n{{ text }}", help="template over the columns"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64, 128, 256], help="levels")
    parser.add_argument("--rounds", type=int, default=8, help="rows of a level for each request in flight (8)")
    parser.add_argument("--max-tokens", type=int, default=128, help="(128)")
    parser.add_argument("--temperature", type=float, default=0.0, help="(0)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one request (600)")
    parser.add_argument("--gpu-price", type=float, default=0.0, help="dollars per GPU and hour, for the cost of rows")
    parser.add_argument("--num-gpus", type=int, default=1, help="that serve the endpoint (1)")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="JSON of an offline run to set it beside")
    add_plot_option(parser, "rate, latency and the server's gauges")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse_options()
    key = os.environ.get(options.api_key_env) if options.api_key_env else None
    model = options.model or first_model(options.base_url[0], key)
    offline = read_offline(options.compare) if options.compare else {}
    sizes = [max(MIN_ROWS, options.rounds * concurrency) for concurrency in options.concurrency]
    rows = read_rows(options.input, sum(sizes))
    notes = ["rows/s and tokens/s: of the steady part of a level; latencies: of all its rows"]
    if len(rows) < sum(sizes):
        notes.append(f"only {len(rows):,} rows for {sum(sizes):,} requests: later levels repeat them (see cache hits)")
    endless = itertools.cycle(rows)
    levels = []
    with MetricsWatch(options.base_url, key) as watch:
        for concurrency, size in zip(options.concurrency, sizes, strict=True):
            level = run_level(options, model, concurrency, list(itertools.islice(endless, size)), watch)
            levels.append(level)
            print(*cells_of(level), sep="  ", file=sys.stderr, flush=True)
    best = max(level["rows_per_s"] for level in levels)
    knee = next(level["concurrency"] for level in levels if level["rows_per_s"] >= KNEE * best)
    notes += [f"saturation knee: {knee} in flight reach {KNEE:.0%} of the best rate", *set_beside(levels, offline)]
    if options.plot is not None:
        draw(levels, watch, offline, knee, options.plot)
    results = {"model": model, "levels": levels, "knee": knee, "offline": offline}
    show("server", options=options, columns=COLUMNS, rows=map(cells_of, levels), results=results, notes=notes)


if __name__ == "__main__":
    main()
