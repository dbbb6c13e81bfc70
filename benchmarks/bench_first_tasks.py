"""
How often is the embedded model right in the tasks that a newcomer meets first?

Two tasks. The topic of 48 sentences, as `nemo-llm-stage init` writes it for those without data: right is the topic
that the sentence was written for. The sentences of `pipelines/describe_python_docs.py` about 50 texts: right begins
with the name, ends with a full stop, and has at most a fifth of words that are not in the text. That check sees what
is invented, not what is missed: read the answers, which `--show` prints.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from _report import ROOT, make_parser, show
from _texts import TEXTS

from nemo_llm_stage import AsyncHTTPClient, LLMStage, Prompt
from nemo_llm_stage.config.starter_tasks import TOPIC, Task
from nemo_llm_stage.embedded.local_server import LocalServer

SMALL_WORDS = frozenset(
    """
    all and any are but can each for from given had has have into its not returned returns return
    raised than that the their them then they this was were when which will with would
    """.split()  # noqa: SIM905 - to be read as words
)
_WORD = re.compile(r"[a-z]{3,}")
_ENDINGS = re.compile(r"(izes|ises|ches|shes|sses|ing|ed|es|s|e)$")


def invented(answer: str, text: str) -> tuple[set[str], set[str]]:
    """Return the words of an answer, and those of them that the text does not have; stems, without small words."""
    words = stems(answer)
    return words, words - stems(text)


def stems(text: str) -> set[str]:
    """Return the words of a text without their endings."""
    return {_ENDINGS.sub("", word) for word in _WORD.findall(text.lower()) if word not in SMALL_WORDS}


def is_description(answer: str, text: str, name: str) -> bool:
    """Whether an answer is a whole sentence about `name`, with few words that are not the text's."""
    if not (answer.startswith(name) and answer.rstrip().endswith(".")):
        return False
    words, new = invented(answer.removeprefix(name), f"{text} {name.replace('_', ' ')}")
    return bool(words) and len(new) <= max(1, len(words) // 5)


def ask(task: Task, texts: Iterable[str]) -> pd.DataFrame:
    """Return the texts with the embedded model's answers to a task."""
    turns = [
        {"role": role, "content": content}
        for example in task.examples
        for role, content in zip(("user", "assistant"), example, strict=True)
    ]
    with LocalServer() as server:
        stage = LLMStage(
            client=AsyncHTTPClient(server.base_url, max_concurrent_requests=4, timeout=600),
            model=server.model,
            prompt=Prompt(task.prompt, messages=turns),
            output_column="answer",
            parser=list(task.choices) or None,
            generation_config={"max_tokens": task.max_tokens, "temperature": 0.0},
        )
        frame = stage.process(pd.DataFrame({"text": list(texts)}))
        stage.close()
    return frame.assign(answer=frame["answer"].fillna(""))


def describe(num_rows: int, folder: Path) -> pd.DataFrame:
    """Return the output of the first pipeline."""
    script, output = ROOT / "pipelines" / "describe_python_docs.py", folder / f"first_{num_rows}"
    options = ["--rows", str(num_rows), "--output", str(output), "--engine", "local", "--restart", "--no-progress"]
    subprocess.run([sys.executable, str(script), *options], check=True, stdout=subprocess.DEVNULL)
    frame = pd.read_parquet(output)
    return frame.assign(answer=frame["description"].fillna(""))


def measure(options: argparse.Namespace) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each task's name, and its texts with ``answer`` and ``is_right``."""
    texts = {text: topic for topic, group in TEXTS.items() for text in group}
    if "topic" in options.tasks:
        frame = ask(TOPIC, texts)
        yield "topic", frame.assign(is_right=frame["answer"] == frame["text"].map(texts))
    if "description" in options.tasks:
        frame = describe(options.rows, options.folder)
        columns = frame[["answer", "text", "id"]].values
        yield "description", frame.assign(is_right=[is_description(*row) for row in columns])


def main() -> None:
    """Run it."""
    parser = make_parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=["topic", "description"], help="which to measure")
    parser.add_argument("--rows", type=int, default=50, help="texts of the first pipeline (50)")
    parser.add_argument("--show", action="store_true", help="print each answer")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for name, frame in measure(options):
        if options.show:
            for text, answer, is_right in frame[["text", "answer", "is_right"]].values:
                print("right" if is_right else "WRONG", "|", answer, "|", " ".join(text.split())[:150])
        results.append({"task": name, "num_texts": len(frame), "num_right": int(frame["is_right"].sum())})
    columns = ("task", "texts", "right")
    show("first_tasks", options=options, columns=columns, rows=[[*row.values()] for row in results], results=results)


if __name__ == "__main__":
    main()
