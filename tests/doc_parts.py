"""What the documents are made of: their code blocks, the commands in them, and the code in their prose and tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    path
    for folder in ("", ".github", "nemo_llm_stage", "pipelines", "benchmarks", "tests")
    for path in sorted((ROOT / folder).glob("*.md"))
]
USERS_DOCUMENTS = [path for path in DOCUMENTS if path.name not in {"CHANGELOG.md", "REFERENCE.md"}]
"""Those that are written by hand: the reference is made from the code, and the changelog speaks of older versions."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block."""

    document: str
    language: str
    text: str


class Span(NamedTuple):
    """What stands between code marks in prose or in a table."""

    document: str
    text: str


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def all_blocks() -> Iterator[Block]:
    for path in DOCUMENTS:
        for language, text in _FENCE.findall(path.read_text()):
            yield Block(name_of(path), language, text)


def all_spans() -> list[Span]:
    """Those of the documents that are written by hand, each once a document."""
    spans = [
        Span(name_of(path), text.replace("\\|", "|"))
        for path in USERS_DOCUMENTS
        for text in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", _FENCE.sub("", path.read_text()))
    ]
    return list(dict.fromkeys(spans))


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell script."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield words
                words = []


def block_commands() -> list[tuple[str, list[str]]]:
    """Every command of every shell block, with its document."""
    shells = [block for block in all_blocks() if block.language in {"sh", "bash"}]
    return [(block.document, words) for block in shells for words in commands_of(block.text)]


PROGRAMS = ("nemo-llm-stage ", "pytest ", "python ", "pip ", "ray ", "bench_", "NEMO_FUZZ_S=")


def span_commands() -> list[tuple[str, list[str]]]:
    """Every command between code marks, with its document."""
    spans = [span for span in all_spans() if span.text.startswith(PROGRAMS) and " " in span.text]
    return [(span.document, words) for span in spans for words in commands_of(span.text)]
