"""
What does the order of rows gain where prompts share their beginning, and what does it cost where they do not?

Simulated servers with continuous batching and a prefix cache, in processes of their own. Three loads: `documents`, 50
documents with 40 questions each in random order and a cache that holds ten documents; `system`, a long system prompt
that all rows share; `nothing`, no shared prefix. Three orders: as given, `auto`, and the best possible one, the rows
sorted by document. Time is the servers' simulated time from the first start to the last end.
"""

from __future__ import annotations

import argparse
import itertools
import random
from contextlib import ExitStack
from typing import Any

from _report import make_parser, show

from nemo_llm_stage import AsyncHTTPClient, LLMStage
from nemo_llm_stage.testing import ServerConfig, SimulatedServerProcess

COLUMNS = ("load", "servers", "order", "rows/s", "÷ as given", "÷ best", "cached", "ordered windows")
WORDS = ("cedar", "harbour", "copper", "lantern", "meadow", "orbit", "quartz", "river", "saddle", "timber")
BLOCK_CHARS = 64


def make_rows(load: str, num_documents: int, num_questions: int, rng: random.Random) -> list[dict[str, str]]:
    """Return the rows in the order of the documents; `text` stands before `question` in the prompt."""

    def text(num_chars: int) -> str:
        words = ""
        while len(words) < num_chars:
            words += f"{rng.choice(WORDS)} {rng.randrange(1000)} "
        return words[:num_chars]

    rows = []
    for document in range(num_documents):
        body = text(2400)
        for question in range(num_questions):
            own = body if load == "documents" else text(2400) if load == "nothing" else ""
            rows.append({"text": own, "question": f"{document}.{question} {text(60)}"})
    return rows


def run_once(options: argparse.Namespace, load: str, num_servers: int, order: str) -> dict[str, Any]:
    """Run the rows once and return what it took."""
    rng = random.Random(7)
    rows = make_rows(load, options.documents, options.questions, rng)
    if order != "best":
        rng.shuffle(rows)
    config = ServerConfig(
        scheduler="batching",
        max_num_seqs=32,
        max_model_len=4096,
        num_kv_blocks=(10 * 2400 + 32 * 400) // BLOCK_CHARS,
        answer_tokens=options.answer_tokens,
        speedup=options.speedup,
        max_recorded=0,
    )
    with ExitStack() as stack:
        servers = [stack.enter_context(SimulatedServerProcess(config)) for _ in range(num_servers)]
        stage = LLMStage(
            client=AsyncHTTPClient([server.base_url for server in servers], max_concurrent_requests=48),
            model="sim",
            system_prompt="You read documents closely. " * (120 if load == "system" else 1),
            prompt="{{ text }}\n\nQuestion {{ question }}",
            output_column="x",
            generation_config={"max_tokens": options.answer_tokens, "seed": None, "temperature": 1.0},
        )
        outcomes = stage.submit(rows, order="auto" if order == "auto" else "input").result()
        seen = stage.order_statistics()
        stage.close()
        stats = [server.stats for server in servers]
    assert all(outcome["x"].error is None for outcome in outcomes)
    starts = [s.first_start_monotonic_s for s in stats if s.first_start_monotonic_s is not None]
    ends = [s.last_end_monotonic_s for s in stats if s.last_end_monotonic_s is not None]
    seconds = (max(ends) - min(starts)) * options.speedup
    return {
        "load": load,
        "servers": num_servers,
        "order": order,
        "rows_per_s": len(rows) / seconds,
        "cached": sum(s.cached_tokens for s in stats) / sum(s.prompt_tokens for s in stats),
        "num_ordered": seen.num_ordered,
        "num_windows": seen.num_windows,
        "num_preemptions": sum(s.num_preemptions for s in stats),
    }


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--loads", nargs="+", choices=("documents", "system", "nothing"), help="(all)")
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 4], help="how many (1 4)")
    parser.add_argument("--documents", type=int, default=50, help="documents (50)")
    parser.add_argument("--questions", type=int, default=40, help="questions about each (40)")
    parser.add_argument("--answer-tokens", type=int, default=16, help="length of an answer (16)")
    parser.add_argument("--speedup", type=float, default=4.0, help="simulated seconds a real second (4)")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for load, num_servers in itertools.product(options.loads or ("documents", "system", "nothing"), options.servers):
        group = {order: run_once(options, load, num_servers, order) for order in ("as given", "auto", "best")}
        for result in group.values():
            result["gain"] = result["rows_per_s"] / group["as given"]["rows_per_s"]
            result["of_best"] = result["rows_per_s"] / group["best"]["rows_per_s"]
        results += group.values()
    cells = [
        [
            result["load"],
            str(result["servers"]),
            result["order"],
            f"{result['rows_per_s']:,.1f}",
            f"{result['gain']:.2f}",
            f"{result['of_best']:.2f}",
            f"{result['cached']:.1%}",
            f"{result['num_ordered']} of {result['num_windows']}",
        ]
        for result in results
    ]
    notes = ["cached: share of the prompt tokens that came from the prefix cache"]
    show("prefix", options=options, columns=COLUMNS, rows=cells, results=results, notes=notes)


if __name__ == "__main__":
    main()
