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
        (
            "ValueError: Available memory on node 0 (19.41/23.54 GiB) on kv cache allocation is less than requested",
            "out of memory",
            False,
        ),
        ("OSError: org/modle is not a local folder and is not a valid model identifier listed on", "model not", True),
        ("error: failed to load model '/models/x.gguf'", "model not found", True),
        ("OSError: [Errno 98] error while attempting to bind on address: address already in use", "port taken", False),
        ("vllm: error: unrecognized arguments: --max-nmu-seqs 4", "wrong arguments", True),
        ("cannot start 'vllm': No such file or directory", "no such program", True),
        ("RuntimeError: No CUDA GPUs are available", "no usable GPU", True),
        (
            "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or",
            "model not found",
            True,
        ),
        (
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder",
            "model not found",
            True,
        ),
        (
            "Value error, The checkpoint has model type `x` but Transformers does not recognize this architecture.",
            "model not supported",
            True,
        ),
        ("ValueError: Model architectures ['NoSuch'] are not supported for now.", "model not supported", True),
        ("Value error, User-specified max_model_len (200000) is greater than the derived", "wrong arguments", True),
        ("RuntimeError: Failed to infer device type, please set the environment variable", "no usable GPU", True),
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


def test_what_a_logger_writes_before_a_line_is_left_out() -> None:
    """So that the cause comes first, and has more room."""
    cause = "ValueError: To serve at least one request, (3.81 GiB KV cache is needed, which is larger than"
    lines = [
        f"(EngineCore pid=10214) ERROR 11-30 00:01:59 [core.py:1510] {cause}",
        "(APIServer pid=9) RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    assert reason_of(lines).text == f"out of memory: {cause}"
    assert reason_of(lines[1:]).text.startswith("RuntimeError: Engine core")


def test_a_sentence_has_one_full_stop() -> None:
    """What is told goes on after it."""
    assert reason_of(["ValueError: no."]).text == "ValueError: no"


def test_the_last_error_is_told_where_no_cause_is_known() -> None:
    """Or the last line, where none is an error. One that only points to another one is none."""
    failed = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    assert reason_of(["ValueError: b", failed]).text == "ValueError: b"
    assert reason_of(["INFO", failed]).text == failed
    assert reason_of(["ERROR a", "ValueError: b", "bye"]).text == "ValueError: b"
    assert reason_of(["hello", "bye", ""]).text == "bye"
    assert reason_of([]).text == ""
