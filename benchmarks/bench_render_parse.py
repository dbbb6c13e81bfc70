"""
What does it cost to make a row's messages and to read its answer?

CPU time per row on one core, the median of several rounds, for a text row and for a JSON-schema row, each with a
system prompt, a 200-word document and two more columns. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from nemo_llm_stage.core import Completion
from nemo_llm_stage.output import ChoiceOutput, JsonOutput, Output, RegexOutput, TextOutput
from nemo_llm_stage.prompt import Prompt

TEXT_GOAL_US = 40.0
JSON_GOAL_US = 80.0

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
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
