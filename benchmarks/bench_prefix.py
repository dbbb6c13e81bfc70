"""
What does the order of rows gain where prompts share their beginning, and what does it cost where they do not?

Simulated servers with continuous batching and a prefix cache. Four loads: `documents`, 50 documents with 40 questions
each in random order and a cache that holds ten documents; `columns`, a document for each row and four columns that ask
about it; `system`, a long system prompt that all rows share; `nothing`, no shared prefix. Three orders: as given,
`auto`, and the best possible one: the documents are dealt out to the servers beforehand, and each gets its rows
document by document. Client and servers share one event loop in virtual time, so a busy machine changes nothing. With
--python what each server got is sent to NVIDIA Dynamo's engine emulator too, in the same order. With another seed the
rows stand in another order and the servers have other addresses, on which it hangs which document goes where.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from _emulator import Case, Request, emulate
from _report import make_parser, show

from nemo_llm_stage import AsyncHTTPClient, GenerationConfig, Prompt
from nemo_llm_stage.client.endpoints.affinity import affinity
from nemo_llm_stage.dataset.plan import MAX_ROWS_PER_PARTITION
from nemo_llm_stage.stage.order import RowOrder, RowPlan
from nemo_llm_stage.stage.scheduler import Scheduler
from nemo_llm_stage.stage.siblings import Siblings
from nemo_llm_stage.testing import ServerConfig
from nemo_llm_stage.testing.simulator.batching import block_keys
from nemo_llm_stage.testing.simulator.generation import check_request
from nemo_llm_stage.testing.simulator.service import Service
from nemo_llm_stage.testing.virtual_time import run_in_virtual_time, simulated_service
from nemo_llm_stage.worker.chunk import ROWS_PER_CHUNK
from nemo_llm_stage.worker.wide import widened

Row = dict[str, str]
LOADS = ("documents", "columns", "system", "nothing")
ORDERS = ("as given", "auto", "best")
COLUMNS = (
    "load",
    "servers",
    "order",
    "rows/s",
    "÷ as given",
    "its range",
    "÷ best",
    "cached",
    "busiest ÷ mean",
    "emulated rows/s",
    "÷ as given",
)
WORDS = ("cedar", "harbour", "copper", "lantern", "meadow", "orbit", "quartz", "river", "saddle", "timber")
NUM_COLUMNS = 4
BLOCK_CHARS = 64
MAX_FIXED = 48
FIRST_PORT = 21_700


def make_rows(load: str, num_documents: int, num_questions: int, rng: random.Random) -> list[Row]:
    """Return the rows in the order of the documents; `text` stands before `question` in the prompt."""

    def text(num_chars: int) -> str:
        words = ""
        while len(words) < num_chars:
            words += f"{rng.choice(WORDS)} {rng.randrange(1000)} "
        return words[:num_chars]

    rows = []
    for document in range(num_documents):
        body = text(2400)
        for question in range(num_questions // (NUM_COLUMNS if load == "columns" else 1)):
            own = body if load == "documents" else "" if load == "system" else text(2400)
            rows.append({"text": own, "question": f"{document}.{question} {text(60)}"})
    return rows


def deal_out(rows: Sequence[Row], num_servers: int) -> list[list[Row]]:
    """Return for each server its rows: whole documents, one server's after another, and equal shares."""
    size = -(-len(rows) // num_servers)
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def windows_of(rows: list[Row], row_order: RowOrder) -> Iterator[list[Row]]:
    """Yield the rows that are ordered at once, as a worker reads them from partitions of the usual size."""
    for start in range(0, len(rows), MAX_ROWS_PER_PARTITION):
        table = pa.Table.from_pylist(rows[start : start + MAX_ROWS_PER_PARTITION])
        chunks = (table.slice(place, ROWS_PER_CHUNK) for place in range(0, table.num_rows, ROWS_PER_CHUNK))
        for window in widened(chunks, lambda: row_order.gains):
            yield window.to_pylist()


async def send_rows(
    options: argparse.Namespace, client: AsyncHTTPClient, prompts: Sequence[Prompt], rows: list[Row], order: str
) -> None:
    """Send the rows as a stage with that order does, each with all prompts."""
    config = GenerationConfig(max_tokens=options.answer_tokens, seed=None, temperature=1.0)
    scheduler = Scheduler(client.limit)
    row_order, siblings = RowOrder(prompts[0]), Siblings(prompts, ())

    async def run_window(rows: Sequence[Row], plan: RowPlan) -> None:
        async def run_row(place: int) -> None:
            sent = [prompt.render(rows[place]) for prompt in prompts]
            with affinity(plan.groups[place]):
                await asyncio.gather(
                    *(client.complete(messages=one, model="sim", generation_config=config) for one in sent)
                )

        await scheduler.run(plan.indices, run_row)

    runs = []
    for window in windows_of(rows, row_order):
        plan = siblings.keep_together(window, row_order.of(window)) if order == "auto" else None
        plan = plan or RowPlan(range(len(window)), [None] * len(window))
        runs.append(run_window(window, plan))
    await asyncio.gather(*runs)
    await client.aclose()


async def start(stack: AsyncExitStack, config: ServerConfig, port: int) -> tuple[int, Service]:
    """Start a server on the port, or on any where that is taken, and return its port and the server."""
    with suppress(OSError):
        return await stack.enter_async_context(simulated_service(config, port=port))
    return await stack.enter_async_context(simulated_service(config))


def emulated_seconds(options: argparse.Namespace, config: ServerConfig, service: Service) -> float:
    """Return how long the emulator takes for the requests that a server got, in their order; 0 without an emulator."""
    if options.python is None:
        return 0.0
    requests = []
    for record in service.recorded:
        request = check_request(record.body, is_chat=True, config=config)
        blocks = [*block_keys(request.prompt, request.prompt_tokens), len(requests)]  # the last is nobody else's
        requests.append(Request(tuple(abs(block) for block in blocks), request.prompt_tokens, options.answer_tokens))
    case = Case("documents", requests, (), config.max_num_seqs, config.num_kv_blocks, has_prefix_cache=True)
    in_flight = MAX_FIXED if options.limit == "auto" else options.limit
    seconds: float = emulate(case, in_flight, options.python, options.folder)["seconds"]
    return seconds


async def run_once(options: argparse.Namespace, load: str, num_servers: int, order: str, seed: int) -> dict[str, Any]:
    """Run the rows once and return what it took."""
    rng = random.Random(seed)
    rows = make_rows(load, options.documents, options.questions, rng)
    if order != "best":
        rng.shuffle(rows)
    config = ServerConfig(
        scheduler="batching",
        max_num_seqs=32,
        max_model_len=4096,
        num_kv_blocks=(10 * 2400 + 32 * 400) // BLOCK_CHARS,
        answer_tokens=options.answer_tokens,
        max_recorded=0 if options.python is None else len(rows) * NUM_COLUMNS,
    )
    system_prompt = "You read documents closely. " * (120 if load == "system" else 1)
    prompts = [
        Prompt(f"{{{{ text }}}}\n\nQuestion {number}: {{{{ question }}}}", system_prompt=system_prompt)
        for number in range(NUM_COLUMNS if load == "columns" else 1)
    ]
    async with AsyncExitStack() as stack:
        servers = [await start(stack, config, FIRST_PORT + 10 * seed + number) for number in range(num_servers)]
        urls = [f"http://127.0.0.1:{port}/v1" for port, _ in servers]
        jobs = [(urls, rows)]
        if order == "best":
            jobs = [([url], share) for url, share in zip(urls, deal_out(rows, num_servers), strict=True)]
        limit = options.limit
        clients = [AsyncHTTPClient(asked, max_concurrent_requests=limit) for asked, _ in jobs]
        await asyncio.gather(
            *(send_rows(options, client, prompts, part, order) for client, (_, part) in zip(clients, jobs, strict=True))
        )
        stats = [service.stats() for _, service in servers]
        emulated_s = max(emulated_seconds(options, config, service) for _, service in servers)
    starts = [s.first_start_monotonic_s for s in stats if s.first_start_monotonic_s is not None]
    ends = [s.last_end_monotonic_s for s in stats if s.last_end_monotonic_s is not None]
    prompt_tokens = sum(s.prompt_tokens for s in stats)
    return {
        "rows_per_s": len(rows) / (max(ends) - min(starts)),
        "cached": sum(s.cached_tokens for s in stats) / prompt_tokens,
        "busiest": max(s.prompt_tokens for s in stats) / prompt_tokens * num_servers,
        "num_preemptions": sum(s.num_preemptions for s in stats),
        "emulated_rows_per_s": len(rows) / emulated_s if emulated_s else 0.0,
    }


def compare(options: argparse.Namespace, load: str, num_servers: int) -> list[dict[str, Any]]:
    """Run the rows in each order, once with each seed, and return a result for each order."""
    runs: dict[str, list[dict[str, Any]]] = {order: [] for order in ORDERS}
    for seed, order in itertools.product(range(options.seeds), ORDERS):
        runs[order].append(run_in_virtual_time(lambda: run_once(options, load, num_servers, order, seed)))  # noqa: B023
    means = {
        order: {name: statistics.mean(run[name] for run in runs[order]) for name in runs[order][0]} for order in runs
    }
    given, best = means["as given"], means["best"]
    results = []
    for order, mean in means.items():
        result: dict[str, Any] = {"load": load, "servers": num_servers, "order": order} | mean
        pairs = zip(runs[order], runs["as given"], strict=True)
        result["gains"] = [one["rows_per_s"] / other["rows_per_s"] for one, other in pairs]
        result["gain"] = statistics.mean(result["gains"])
        result["of_best"] = mean["rows_per_s"] / best["rows_per_s"]
        result["emulated_gain"] = mean["emulated_rows_per_s"] / (given["emulated_rows_per_s"] or 1.0)
        results.append(result)
    return results


def cells_of(result: dict[str, Any]) -> list[str]:
    """Return one line of the table."""
    return [
        result["load"],
        str(result["servers"]),
        result["order"],
        f"{result['rows_per_s']:,.1f}",
        f"{result['gain']:.2f}",
        f"{min(result['gains']):.2f} to {max(result['gains']):.2f}",
        f"{result['of_best']:.2f}",
        f"{result['cached']:.1%}",
        f"{result['busiest']:.2f}",
        f"{result['emulated_rows_per_s']:,.1f}" if result["emulated_rows_per_s"] else "",
        f"{result['emulated_gain']:.2f}" if result["emulated_gain"] else "",
    ]


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS, help="(all)")
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 4], help="how many (1 4)")
    parser.add_argument("--documents", type=int, default=50, help="documents (50)")
    parser.add_argument("--questions", type=int, default=40, help="questions about each (40)")
    parser.add_argument("--answer-tokens", type=int, default=16, help="length of an answer (16)")
    parser.add_argument("--limit", type=limit_of, default=MAX_FIXED, help="in flight at each server, or auto (48)")
    parser.add_argument("--python", type=Path, help="interpreter with the emulator (none: without it)")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each, with another seed each (5)")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for load, num_servers in itertools.product(options.loads, options.servers):
        results += compare(options, load, num_servers)
    notes = [
        "mean over the seeds; its range: from the seed that gains least to the one that gains most",
        "cached: share of the prompt tokens that came from the prefix cache",
        "busiest ÷ mean: prompt tokens of the server that got most, over those of a mean one",
    ]
    show("prefix", options=options, columns=COLUMNS, rows=map(cells_of, results), results=results, notes=notes)


def limit_of(text: str) -> int | str:
    """Return a limit as `AsyncHTTPClient` takes it."""
    return text if text == "auto" else int(text)


if __name__ == "__main__":
    main()
