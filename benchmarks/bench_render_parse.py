"""
What does it cost to make a row's messages, to read its answer, and to find the order in which rows are sent?

CPU time per row on one core, the median of several rounds, for a text row and for a JSON-schema row, each with a
system prompt, a 200-word document and two more columns; for the order, rendering included, 4,096 questions of 2,400
bytes, forty about each document in random order, or none that share a document. Prints a table and, last, one line
of JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from nemo_llm_stage.core import Completion
from nemo_llm_stage.output import ChoiceOutput, JsonOutput, Output, RegexOutput, TextOutput
from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.stage.order import RowOrder
from nemo_llm_stage.worker.chunk import ROWS_PER_CHUNK

TEXT_GOAL_US = 40.0
JSON_GOAL_US = 80.0
ORDER_GOAL_US = 20.0
ORDER_PROMPT = Prompt("{{ text }}\n\nQuestion: {{ question }}", system_prompt="You judge how much a text teaches.")

ROW = {"id": 7, "url": "https://example.org/a", "text": "curation " * 200, "tags": ["a", "b", "c"]}
PROMPT = Prompt(
    "Judge this page from {{ url }}:\n\n{{ text | truncate_chars(4000) }}\n\nTags: {{ tags | join(', ') }}",
    system_prompt="You judge how much a text teaches.",
)
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "score": {"type": "integer", "minimum": 0, "maximum": 5},
        "language": {"enum": ["en", "de", "fr"]},
        "reason": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "facts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"subject": {"type": "string"}, "year": {"type": "integer"}, "sure": {"type": "number"}},
                "required": ["subject"],
            },
        },
    },
    "required": ["title", "score"],
}
ANSWER = json.dumps(
    {
        "title": "On curation",
        "score": 4,
        "language": "en",
        "reason": "It explains " + "well " * 20,
        "facts": [{"subject": f"subject {number}", "year": 1900 + number, "sure": 1} for number in range(5)],
    }
)
CASES: list[tuple[str, Output, str]] = [
    ("text", TextOutput(), "word " * 200),
    ("choices", ChoiceOutput(["good", "bad"]), "Good."),
    ("regex", RegexOutput(r"Score: (?P<score>\d)"), "word " * 50 + "Score: 4"),
    ("json", JsonOutput(SCHEMA), ANSWER),
    ("json in prose and fences", JsonOutput(SCHEMA), f"Here it is:\n```json\n{ANSWER}\n```"),
    ("json with a trailing comma", JsonOutput(SCHEMA), ANSWER[:-1] + ",}"),
]


def measure_us(run: Callable[[], Any], *, num_rows: int, num_rounds: int) -> float:
    """Return the CPU time of one `run` in microseconds: the median over rounds of `num_rows` runs each."""
    run()
    rounds = []
    for _ in range(num_rounds):
        started_s = time.process_time()
        for _ in range(num_rows):
            run()
        rounds.append((time.process_time() - started_s) / num_rows * 1e6)
    return statistics.median(rounds)


def rows_about(num_documents: int) -> list[dict[str, str]]:
    """Return the questions, as many about each document, in random order."""
    rng = random.Random(0)
    texts = [f"{rng.getrandbits(9400):x}" for _ in range(num_documents)]
    rows = [{"text": texts[number % num_documents], "question": str(number)} for number in range(ROWS_PER_CHUNK)]
    rng.shuffle(rows)
    return rows


def order_us(num_documents: int, num_rounds: int) -> float:
    """Return the CPU time of a row in microseconds."""
    rows = rows_about(num_documents)
    return measure_us(lambda: RowOrder(ORDER_PROMPT).of(rows), num_rows=1, num_rounds=num_rounds) / len(rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000, help="rows per round (default: 5000)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the median counts (default: 7)")
    options = parser.parse_args()
    render_us = measure_us(lambda: PROMPT.render(ROW), num_rows=options.rows, num_rounds=options.rounds)
    print(f"{'µs of CPU per row':<30}{'render':>8}{'parse':>8}{'sum':>8}{'goal':>8}")
    figures: dict[str, Any] = {"benchmark": "render_parse", "render_us": round(render_us, 2), "parse_us": {}}
    for name, output, answer in CASES:
        parse = functools.partial(output.parse, answer, Completion(texts=(answer,)), 0)
        parse_us = measure_us(parse, num_rows=options.rows, num_rounds=options.rounds)
        goal_us = JSON_GOAL_US if name.startswith("json") else TEXT_GOAL_US
        print(f"{name:<30}{render_us:>8.1f}{parse_us:>8.1f}{render_us + parse_us:>8.1f}{f'≤ {goal_us:.0f}':>8}")
        figures["parse_us"][name] = round(parse_us, 2)
    print(f"\n{'order of rows':<30}{'sum':>8}{'goal':>8}")
    for name, num_documents in (("forty share a document", ROWS_PER_CHUNK // 40), ("none do", ROWS_PER_CHUNK)):
        figures[f"order_us_{name}"] = us = round(order_us(num_documents, options.rounds), 2)
        print(f"{name:<30}{us:>8.1f}{f'≤ {ORDER_GOAL_US:.0f}':>8}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
