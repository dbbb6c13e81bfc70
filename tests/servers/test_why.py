"""Why a server did not start, by the words of real logs."""

from __future__ import annotations

import pytest

from nemo_llm_stage.servers.why import reason_of


@pytest.mark.parametrize(
    ("line", "words", "is_lasting"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out of memory", False),
        (
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
            "out of",
            False,
        ),
        (
            "ValueError: Free memory on device (10.2/79.1 GiB) on startup is less than desired GPU memory utilization",
            "out of memory",
            False,
        ),
        ("OSError: org/modle is not a local folder and is not a valid model identifier listed on", "model not", True),
        ("error: failed to load model '/models/x.gguf'", "model not found", True),
        ("OSError: [Errno 98] error while attempting to bind on address: address already in use", "port taken", False),
        ("vllm: error: unrecognized arguments: --max-nmu-seqs 4", "wrong arguments", True),
        ("cannot start 'vllm': No such file or directory", "no such program", True),
        ("RuntimeError: No CUDA GPUs are available", "no usable GPU", True),
    ],
)
def test_the_line_that_says_why_is_found(line: str, words: str, is_lasting: bool) -> None:
    """Among the lines of a traceback and what a wrapper says after it."""
    reason = reason_of(
        ["INFO loading", "Traceback (most recent call last):", line, "RuntimeError: Engine failed. See above."]
    )
    assert words in reason.words
    assert reason.line.startswith(line[:40])
    assert reason.is_lasting is is_lasting


def test_the_last_error_is_told_where_no_cause_is_known() -> None:
    """Or the last line, where none is an error."""
    assert reason_of(["ERROR a", "ValueError: b", "bye"]).text == "ValueError: b"
    assert reason_of(["hello", "bye", ""]).text == "bye"
    assert reason_of([]).text == ""
