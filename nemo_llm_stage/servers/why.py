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
        """Both together, without the full stop of a sentence."""
        return ": ".join(filter(None, (self.words, self.line))).removesuffix(".")


NO_REASON = Reason()

_MEMORY = (
    r"out of memory|OutOfMemoryError|no available memory for the cache|not enough memory"
    r"|(free|available) memory on .* less than|failed to allocate|MemoryError|cannot allocate memory"
    r"|larger than the (maximum|available) (number of tokens|kv cache)|KV cache is needed, which is larger"
)
_MODEL = (
    r"is not a valid model identifier|RepositoryNotFoundError|not a local folder|Repository Not Found"
    r"|(failed|unable|error).{0,40}(load|open).{0,20}(model|gguf)|no such model|model path .* does not exist"
    r"|can't load (the )?(configuration|model|tokenizer)|not a GGUF model file|\.gguf.{0,20}: No such file"
    r"|HFValidationError|LocalEntryNotFoundError|does not appear to have a file named"
)
_ARGUMENTS = (
    r"unrecognized arguments?|error: argument|invalid argument: |no such option"
    r"|^\s*Value error, "  # of vLLM's checked settings
)

_CAUSES: tuple[tuple[str, bool, re.Pattern[str]], ...] = tuple(
    (words, is_lasting, re.compile(pattern, re.IGNORECASE))
    for words, is_lasting, pattern in (
        ("there is no such program", True, r"^cannot start '"),
        ("port taken", False, r"address already in use|couldn't bind|failed to bind|\[errno (98|48)\]"),
        ("out of memory", False, _MEMORY),
        ("model not supported", True, r"not recognize this architecture|architectures? .{0,80} not supported"),
        ("model not found", True, _MODEL),
        ("no access to the model", True, r"GatedRepoError|is a gated repo|access to model .* is restricted"),
        ("wrong arguments", True, _ARGUMENTS),
        (
            "no usable GPU",
            True,
            r"no CUDA GPUs are available|failed to infer device type|CUDA driver version is insuff",
        ),
    )
)
_ELSEWHERE = re.compile(r"see (the )?(root cause|logs?|error|traceback|stack trace)s? (above|for)", re.IGNORECASE)
"""An error that only says that there was another one."""

_LOGGER = re.compile(r"^\(\w+ pid=\d+\) +([A-Z]+ [\d-]+ [\d:]+ \[[\w.]+:\d+\] *)?")
"""What vLLM writes before a line: process, level, time and place."""

_ERROR = re.compile(r"^\s*([\w.]*(Error|Exception)\b|(fatal|error)\b)|\b(ERROR|FATAL|CRITICAL)\b", re.IGNORECASE)


def reason_of(lines: Sequence[str]) -> Reason:
    """Return why a server ended, by the end of its log."""
    told = [line for line in lines if line.strip()]
    for words, is_lasting, pattern in _CAUSES:
        for line in told:
            if pattern.search(line):
                return Reason(words, _told(line), is_lasting)
    errors = [line for line in told if _ERROR.search(line)]
    errors = [line for line in errors if not _ELSEWHERE.search(line)] or errors
    last = (errors or told)[-1:]
    return Reason("", _told(last[0]) if last else "", False)


def _told(line: str) -> str:
    return one_line(_LOGGER.sub("", line).strip(), MAX_LINE_CHARS)


def ended_words(code: int | None) -> str:
    """Return how a process ended."""
    if code is None:
        return "gone"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
