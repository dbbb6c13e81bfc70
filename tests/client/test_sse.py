"""Streams become the answers they are pieces of."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_llm_stage.client.sse import StreamedAnswer
from nemo_llm_stage.client.wire import completion_of_answer
from nemo_llm_stage.core import Completion, Usage
from nemo_llm_stage.errors import BadRequestError, ConnectionDroppedError, InvalidResponseError

DONE = b"data: [DONE]\n\n"


def event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def delta(index: int = 0, finish_reason: str | None = None, **texts: Any) -> bytes:
    return event(model="m", choices=[{"index": index, "delta": texts, "finish_reason": finish_reason}])


def read(*pieces: bytes) -> Completion:
    stream = StreamedAnswer()
    for piece in pieces:
        stream.feed(piece)
    return completion_of_answer(stream.whole())


STREAM = (
    b": a comment\n\n"
    + delta(role="assistant", content="")
    + delta(reasoning_content="hm ")
    + delta(content="Grüße ")
    + delta(1, content="b")
    + delta(content="🐾")
    + delta(finish_reason="stop")
    + delta(1, finish_reason="length")
    + event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 2})
    + DONE
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cut_gives_the_same_answer(cuts: list[int]) -> None:
    """Pieces end anywhere, within a letter too."""
    edges = [0, *sorted(cuts), len(STREAM)]
    completion = read(*(STREAM[start:end] for start, end in itertools.pairwise(edges)))
    assert (completion.texts, completion.finish_reasons) == (("Grüße 🐾", "b"), ("stop", "length"))
    assert (completion.reasoning, completion.usage) == (("hm ", None), Usage(5, 2, None))


def test_lines_may_end_in_crlf_and_the_last_in_nothing() -> None:
    """Both are within what servers send."""
    stream = (delta(content="x") + delta(finish_reason="stop")).replace(b"\n", b"\r\n") + b"data: [DONE]"
    assert read(stream).texts == ("x",)


def test_text_completions_stream_too() -> None:
    """/completions sends its text without a delta, its logprobs in lists side by side."""
    first = event(choices=[{"index": 0, "text": "a", "logprobs": {"tokens": ["a"]}, "finish_reason": None}])
    last = event(choices=[{"index": 0, "text": "b", "logprobs": {"tokens": ["b"]}, "finish_reason": "stop"}])
    completion = read(first, last, DONE)
    assert (completion.texts, completion.logprobs) == (("ab",), ({"tokens": ["a", "b"]},))


def test_finished_without_done_is_finished() -> None:
    """Some servers leave [DONE] out."""
    assert read(delta(content="x"), delta(finish_reason="stop")).texts == ("x",)


@pytest.mark.parametrize("stream", [b"", delta(content="half"), STREAM[: STREAM.index(b'"finish_reason": "length"')]])
def test_an_unfinished_stream_was_dropped(stream: bytes) -> None:
    """Neither [DONE] nor a finish reason for every choice: the rest is missing."""
    with pytest.raises((ConnectionDroppedError, InvalidResponseError)):
        read(stream)


def test_done_without_a_word_is_no_answer() -> None:
    """A stream that says it is done and gave neither text nor reason is not an answer."""
    with pytest.raises(InvalidResponseError):
        read(delta(role="assistant", content=""), DONE)


@pytest.mark.parametrize("prefix", [b"data: ", b"error: "])
def test_an_error_event_is_the_answer(prefix: bytes) -> None:
    """Servers report what goes wrong later under status 200."""
    error = prefix + json.dumps({"error": {"message": "bad grammar", "code": 400}}).encode() + b"\n\n"
    with pytest.raises(BadRequestError, match="bad grammar"):
        read(delta(content="x"), error, DONE)


def test_an_event_that_is_no_json() -> None:
    """A broken event breaks the answer."""
    with pytest.raises(InvalidResponseError):
        read(b"data: {broken\n\n")
