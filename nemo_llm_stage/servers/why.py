"""
Why a server did not start: the line of its log that says so, and what that means.

Pure. The words are those of vLLM, SGLang, llama.cpp, PyTorch and Linux.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_llm_stage.text import one_line

MAX_LINE_CHARS = 300


@dataclass(frozen=True, slots=True)
class Reason:
    """
    Why a server ended.

    Attributes:
        words: What it means, e.g. ``out of memory``; empty where nobody can tell.
        line: Of the log.
        is_lasting: Whether starting it again as it is can only end in the same way.
    """

    words: str = ""
    line: str = ""
    is_lasting: bool = False

    @property
    def text(self) -> str:
        """Both together."""
        return ": ".join(filter(None, (self.words, self.line)))


NO_REASON = Reason()

_MEMORY = (
    r"out of memory|OutOfMemoryError|no available memory for the cache|not enough memory"
    r"|free memory on device .* less than|failed to allocate|MemoryError|cannot allocate memory"
    r"|larger than the (maximum|available) (number of tokens|kv cache)|KV cache is needed, which is larger"
)
_MODEL = (
    r"is not a valid model identifier|RepositoryNotFoundError|not a local folder|Repository Not Found"
    r"|(failed|unable|error).{0,40}(load|open).{0,20}(model|gguf)|no such model|model path .* does not exist"
    r"|can't load (the )?(configuration|model|tokenizer)|not a GGUF model file|\.gguf.{0,20}: No such file"
)

_CAUSES: tuple[tuple[str, bool, re.Pattern[str]], ...] = tuple(
    (words, is_lasting, re.compile(pattern, re.IGNORECASE))
    for words, is_lasting, pattern in (
        ("there is no such program", True, r"^cannot start '"),
        ("port taken", False, r"address already in use|couldn't bind|failed to bind|\[errno (98|48)\]"),
        ("out of memory", False, _MEMORY),
        ("model not found", True, _MODEL),
        ("wrong arguments", True, r"unrecognized arguments?|error: argument|invalid argument: |no such option"),
        (
            "no usable GPU",
            True,
            r"no CUDA GPUs are available|failed to infer device type|CUDA driver version is insuff",
        ),
    )
)
_ERROR = re.compile(r"^\s*([\w.]*(Error|Exception)\b|(fatal|error)\b)|\b(ERROR|FATAL|CRITICAL)\b", re.IGNORECASE)


def reason_of(lines: Sequence[str]) -> Reason:
    """Return why a server ended, by the end of its log."""
    told = [line for line in lines if line.strip()]
    for words, is_lasting, pattern in _CAUSES:
        for line in told:
            if pattern.search(line):
                return Reason(words, one_line(line.strip(), MAX_LINE_CHARS), is_lasting)
    errors = [line for line in told if _ERROR.search(line)]
    last = (errors or told)[-1:]
    return Reason("", one_line(last[0].strip(), MAX_LINE_CHARS) if last else "", False)


def ended_words(code: int | None) -> str:
    """Return how a process ended."""
    if code is None:
        return "gone"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
