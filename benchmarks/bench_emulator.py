"""
How true is the simulated server? The same requests, at it and at NVIDIA Dynamo's engine emulator, which emulates vLLM.

Both run in virtual time and keep a number of requests in flight: a long job at several numbers, one whose KV cache
overflows, and documents with questions, sorted, mixed and in the order of `order: auto`, with a prefix cache for ten.
Beside the rows per second: requests thrown out of the KV cache, and the share of prompt tokens from the prefix cache.

The emulator needs an environment of its own, see _emulator.py; --python names its interpreter.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _emulator import Case, Request, emulate
from _report import make_parser, show

from nemo_llm_stage.rows.prefix import order_by_prefix
from nemo_llm_stage.testing import ServerConfig
from nemo_llm_stage.testing.simulator.answers import CHARS_PER_TOKEN
from nemo_llm_stage.testing.simulator.batching import BatchingEngine
from nemo_llm_stage.testing.simulator.config import BLOCK_TOKENS
from nemo_llm_stage.testing.simulator.slots import Job
from nemo_llm_stage.testing.simulator.stats import StatsRecorder
from nemo_llm_stage.testing.virtual_time import run_in_virtual_time

COLUMNS = (
    "load",
    "in flight",
    "simulated rows/s",
    "emulated",
    "off",
    "thrown out, simulated",
    "emulated",
    "cached",
    "",
)
PROMPT_TOKENS, ANSWER_TOKENS, ANSWER_SIGMA = 75, 200, 0.5
DOCUMENT_BLOCKS, QUESTION_BLOCKS = 37, 2


def make_cases(num_rows: int) -> Iterator[Case]:
    """Yield what is compared."""
    rng = random.Random(1)
    num_blocks = -(-PROMPT_TOKENS // BLOCK_TOKENS)
    rows = [
        Request(
            tuple(range(number * num_blocks, (number + 1) * num_blocks)),
            PROMPT_TOKENS,
            max(1, round(ANSWER_TOKENS * rng.lognormvariate(0, ANSWER_SIGMA))),
        )
        for number in range(num_rows)
    ]
    yield Case("slots", rows, (1, 16, 64, 128, 256), 128, 25_000)
    yield Case("kv cache", rows, (64, 96, 128, 256), 512, 1600)
    documents = []
    for document in range(50):
        body = tuple(10**6 * (document + 1) + block for block in range(DOCUMENT_BLOCKS))
        for question in range(40):
            own = tuple(10**6 * (document + 1) + 10**4 * (question + 1) + block for block in range(QUESTION_BLOCKS))
            documents.append(Request(body + own, BLOCK_TOKENS * (DOCUMENT_BLOCKS + QUESTION_BLOCKS), 16))
    room = 10 * DOCUMENT_BLOCKS + 32 * (QUESTION_BLOCKS + 2)
    yield Case("documents, sorted", documents, (48,), 32, room, has_prefix_cache=True)
    mixed = documents.copy()
    rng.shuffle(mixed)
    yield Case("documents, mixed", mixed, (48,), 32, room, has_prefix_cache=True)
    order = order_by_prefix([text_of(request).encode() for request in mixed])
    ordered = [mixed[index] for index in order.indices]
    yield Case("documents, order: auto", ordered, (48,), 32, room, has_prefix_cache=True)


def text_of(request: Request) -> str:
    """Return the prompt."""
    text = "".join(f"{block:0{BLOCK_TOKENS * CHARS_PER_TOKEN}d}" for block in request.blocks)
    return text[: request.prompt_tokens * CHARS_PER_TOKEN]


def simulate(case: Case, in_flight: int) -> dict[str, Any]:
    """Return what the simulated server's engine does with the requests."""
    config = ServerConfig(
        scheduler="batching",
        max_num_seqs=case.max_num_seqs,
        num_kv_blocks=case.num_kv_blocks,
        max_model_len=min(32_768, case.num_kv_blocks * BLOCK_TOKENS),
        prefix_caching=case.has_prefix_cache,
    )

    async def run() -> dict[str, Any]:
        stats = StatsRecorder(config.max_num_seqs)
        engine = BatchingEngine(config, stats)
        began_s, done = time.monotonic(), asyncio.Event()
        jobs: list[Job] = []
        num_left = len(case.requests)

        def send() -> None:
            if len(jobs) < len(case.requests):
                request = case.requests[len(jobs)]
                job = Job(text_of(request), request.prompt_tokens, request.output_tokens, 0.0, lambda: None, finish)
                jobs.append(job)
                engine.submit(job)

        def finish() -> None:
            nonlocal num_left
            num_left -= 1
            if num_left:
                send()
            else:
                done.set()

        for _ in range(in_flight):
            send()
        await done.wait()
        return {
            "seconds": time.monotonic() - began_s,
            "preemptions": stats.seen.num_preemptions,
            "cached_tokens": sum(job.cached_tokens for job in jobs),
        }

    return run_in_virtual_time(run)


def compare(case: Case, in_flight: int, python: Path | None, folder: Path) -> dict[str, Any]:
    """Run the requests at both."""
    simulated = simulate(case, in_flight)
    emulated = None if python is None else emulate(case, in_flight, python, folder)
    prompt_tokens = sum(request.prompt_tokens for request in case.requests)
    result: dict[str, Any] = {"load": case.name, "in_flight": in_flight}
    for name, seen in (("simulated", simulated), ("emulated", emulated)):
        if seen is not None:
            result[name] = {
                "rows_per_s": len(case.requests) / seen["seconds"],
                "preemptions": seen["preemptions"],
                "cached": seen["cached_tokens"] / prompt_tokens,
            }
    if emulated is not None:
        result["off"] = emulated["seconds"] / simulated["seconds"] - 1
    return result


def cells_of(result: dict[str, Any]) -> list[str]:
    """Return one line of the table."""
    ours, theirs = result["simulated"], result.get("emulated")
    return [
        result["load"],
        str(result["in_flight"]),
        f"{ours['rows_per_s']:,.1f}",
        "" if theirs is None else f"{theirs['rows_per_s']:,.1f}",
        "" if theirs is None else f"{result['off']:+.1%}",
        str(ours["preemptions"]),
        "" if theirs is None else str(theirs["preemptions"]),
        f"{ours['cached']:.1%}",
        "" if theirs is None else f"{theirs['cached']:.1%}",
    ]


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--python", type=Path, help="interpreter with the emulator (none: the simulated server alone)")
    parser.add_argument("--rows", type=int, default=2000, help="of the loads without documents (2000)")
    options = parser.parse_args()
    results = [
        compare(case, number, options.python, options.folder)
        for case in make_cases(options.rows)
        for number in case.numbers
    ]
    notes = ["off: the simulated server's rows per second against the emulator's"]
    show(
        "emulator", options=options, columns=COLUMNS, rows=[cells_of(r) for r in results], results=results, notes=notes
    )


if __name__ == "__main__":
    main()
