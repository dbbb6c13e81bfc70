"""
What does a server cost that fails for a third of the attempts?

The same rows in this process with their journal, against a server that is well and against one that fails for a share
of the attempts in every way there is: 429 with and without Retry-After, 500, 503, dropped and reset connections, half
a body, HTML, an aborted answer, null content. Told are the attempts for each row, rows that failed or came out with
another's answer, and how long a row waits that nothing is wrong with: the share of the run after which every row had
been sent for the first time, beside the same without faults. Rows that sleep before a retry hold no permit, so that
these two are alike.
"""

from __future__ import annotations

import argparse
import shutil
from typing import Any

import pyarrow.parquet as pq
from _data import write_texts
from _report import make_parser, show

from nemo_llm_stage import AsyncHTTPClient, LLMStage, run_job
from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer

COLUMNS = ("server", "attempts ÷ rows", "failed", "wrong", "all sent once after", "of s")
KINDS: tuple[Any, ...] = (429, 500, 503, "drop", "reset", "half_body", "html", "abort", "null_content")


def run_once(options: argparse.Namespace, rate: float) -> dict[str, float]:
    """Run the rows against a server that fails for `rate` of the attempts."""
    source = write_texts(options.folder, options.rows, num_words=20)
    output = options.folder / "faults"
    shutil.rmtree(output, ignore_errors=True)
    share = rate / (len(KINDS) + 1)
    faults = [Fault(429, rate=share, retry_after_s=1.0), *(Fault(kind, rate=share) for kind in KINDS)]
    with SimulatedServer(service_time_s=0.05, faults=faults if rate else [], max_recorded=10 * options.rows) as server:
        client = AsyncHTTPClient(server.base_url, max_concurrent_requests=options.limit)
        stage = LLMStage(client=client, model="sim", prompt="Say {{ text }}", output_column="x")
        result = run_job(stage=stage, input=source, output=output, engine="local", progress=False, max_failed_rows=None)
        requests = server.requests
    first = [request.arrived_monotonic_s for request in requests if request.attempt == 1]
    began_s = min(first)
    table = pq.read_table(output, columns=["text", "x"])
    wrong = sum(
        answer is not None and answer != expected_answer([{"role": "user", "content": f"Say {text}"}])
        for text, answer in zip(table.column("text").to_pylist(), table.column("x").to_pylist(), strict=True)
    )
    return {
        "rate": rate,
        "attempts_per_row": len(requests) / options.rows,
        "num_failed": result.counters.num_failed,
        "num_wrong": wrong,
        "all_sent_once_s": max(first) - began_s,
        "asking_s": max(request.arrived_monotonic_s for request in requests) - began_s,
    }


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=5_000, help="rows of a run (5000)")
    parser.add_argument("--limit", type=int, default=64, help="requests in flight (64)")
    parser.add_argument("--rate", type=float, default=0.3, help="share of the attempts that fail (0.3)")
    options = parser.parse_args()
    results = [run_once(options, 0.0), run_once(options, options.rate)]
    rows = [
        (
            f"fails for {result['rate']:.0%}",
            f"{result['attempts_per_row']:.2f}",
            f"{result['num_failed']:.0f}",
            f"{result['num_wrong']:.0f}",
            f"{result['all_sent_once_s']:.1f}",
            f"{result['asking_s']:.1f}",
        )
        for result in results
    ]
    show("faults", options=options, columns=COLUMNS, rows=rows, results=results)


if __name__ == "__main__":
    main()
