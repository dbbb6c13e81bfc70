"""Streams become the answers they are pieces of."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_llm_stage.client.wire import StreamedAnswer, completion_of_answer
from nemo_llm_stage.core import Completion, Usage
from nemo_llm_stage.errors import (
    BadRequestError,
    ConnectionDroppedError,
    InvalidResponseError,
    RequestError,
    ServerError,
)

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


MIXED_LINE_ENDS = (
    b'\xef\xbb\xbfevent: chunk\rdata: {\r\ndata:\ndata: "choices":[{"delta":{"content":"a"}}]}\r\r'
    b": keep-alive\r\n\r\ndata:\n\nid: 5\rretry: 10\rnonsense\r\n\ndata\n\n"
    b'data:{"choices":[{"delta":{"content":"b\\ud83d"}}]}\r\n\r\n'
    b'data:{"choices":[{"delta":{"content":"\\ude00"},"finish_reason":"stop"}]}\r\rdata: [DONE]\r'
)

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


@given(st.lists(st.integers(0, len(MIXED_LINE_ENDS)), max_size=12))
def test_events_are_read_by_the_standard(cuts: list[int]) -> None:
    """Events of several lines, empty ones, all line ends, a byte-order mark, fields of no use; in any cut."""
    edges = [0, *sorted(cuts), len(MIXED_LINE_ENDS)]
    assert read(*(MIXED_LINE_ENDS[start:end] for start, end in itertools.pairwise(edges))).texts == ("ab😀",)


FRAGMENTS = (
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\xef\xbb\xbf",
        b"data:",
        b"data: ",
        b"event: error",
        b"error: {}",
        b": comment",
        b"{",
        b"}",
    ),
    *(
        delta(content="a"),
        delta(1, content="\u00fc", finish_reason="stop"),
        delta(finish_reason="stop"),
        b"[DONE]",
        DONE,
    ),
    *(b'{"choices":', b'[{"delta":{"content":"b"},"finish_reason":"stop"}]}', b'{"error":"x"}'),
)


def outcome(*pieces: bytes) -> Completion | str:
    try:
        return read(*pieces)
    except RequestError as error:
        return f"{error.kind}: {error}"


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12), st.lists(st.integers(0, 400), max_size=8))
def test_the_cut_never_matters(fragments: list[bytes], cuts: list[int]) -> None:
    """For a stream that is no answer either."""
    stream = b"".join(fragments)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert outcome(*(stream[start:end] for start, end in itertools.pairwise(edges))) == outcome(stream)


def test_one_byte_at_a_time() -> None:
    """The finest cut."""
    assert read(*(MIXED_LINE_ENDS[place : place + 1] for place in range(len(MIXED_LINE_ENDS)))).texts == ("ab😀",)


def test_events_without_blank_lines_are_read() -> None:
    """Home-made servers write one line for each event."""
    stream = (delta(content="a") + delta(content="b", finish_reason="stop") + DONE).replace(b"\n\n", b"\n")
    assert read(stream).texts == ("ab",)


def test_done_ends_the_answer_at_once() -> None:
    """The connection may stay open, and the blank line may never come."""
    stream = StreamedAnswer()
    assert not stream.feed(delta(content="x", finish_reason="stop"))
    assert stream.feed(b"data: [DONE]\n")
    assert stream.feed(b"data: whatever\n\n")
    assert completion_of_answer(stream.whole()).texts == ("x",)


def test_an_error_ends_the_answer_at_once() -> None:
    """What was written before it is no answer."""
    stream = StreamedAnswer()
    stream.feed(delta(content="x"))
    assert stream.feed(b'event: error\ndata: {"message": "out of memory", "code": 500}\n\n')
    with pytest.raises(ServerError, match="out of memory"):
        completion_of_answer(stream.whole())


@pytest.mark.parametrize(
    "error",
    [
        b"event: error\ndata: it broke\n\n",
        b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "it broke"}}\n\n',
        b'{"error": {"message": "it broke"}}\n',
        event(error={"message": "it broke"}),
        event(object="error", message="it broke"),
    ],
)
def test_an_error_after_the_last_word_is_an_error(error: bytes) -> None:
    """However the server writes it."""
    with pytest.raises(InvalidResponseError, match="it broke"):
        read(delta(content="x"), error, DONE)


@pytest.mark.parametrize("reason", [None, "", "null"])
def test_done_without_a_finish_reason_is_broken_off(reason: Any) -> None:
    """The text may be half an answer."""
    with pytest.raises(InvalidResponseError, match="no finish reason"):
        read(delta(content="half", finish_reason=reason), DONE)


def test_half_an_event_at_the_end_says_nothing() -> None:
    """Without a finish reason the answer is not whole; with one it is."""
    half = b'data: {"choices": [{"delta": {"con'
    with pytest.raises(ConnectionDroppedError):
        read(delta(content="x"), half)
    assert read(delta(content="x", finish_reason="stop"), half).texts == ("x",)


def test_a_delta_in_parts_is_kept() -> None:
    """Beside deltas that are texts."""
    parts = [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "Hello "}, {"type": "text", "text": 5}]
    completion = read(delta(content=parts), delta(content="world", finish_reason="stop"), DONE)
    assert (completion.texts, completion.reasoning) == (("Hello world",), ("so",))


@pytest.mark.parametrize(
    "beside",
    [
        {"reasoning_details": [{"type": "reasoning.text", "text": "so"}], "reasoning": "so"},
        {"reasoning_details": [{"type": "reasoning.text", "text": "so"}]},
        {"thinking": "so"},
        {"reasoning": [{"text": "so"}]},
    ],
    ids=str,
)
def test_thinking_is_kept(beside: dict[str, Any]) -> None:
    """Once, where a server sends it under two names."""
    completion = read(delta(**beside), delta(**beside), delta(content="x", finish_reason="stop"))
    assert (completion.texts, completion.reasoning) == (("x",), ("soso",))


@pytest.mark.parametrize("index", ["0", None, [], {}, 1.5], ids=repr)
def test_an_odd_index_is_the_place_in_the_event(index: Any) -> None:
    """Also where others of the stream are numbers."""
    chunk = {"choices": [{"index": index, "delta": {"content": "a"}, "finish_reason": "stop"}]}
    assert read(delta(1, content="b", finish_reason="stop"), event(**chunk)).texts == ("a", "b")


def test_choices_without_an_index_are_told_apart_by_their_place() -> None:
    """Two in one event are two."""
    parts = [{"delta": {"content": text}, "finish_reason": "stop"} for text in "ab"]
    assert read(event(choices=parts), DONE).texts == ("a", "b")


def test_an_odd_finish_reason_finishes() -> None:
    """The server says that it came to an end."""
    assert read(delta(content="x", finish_reason={"type": "stop"})).finish_reasons == (None,)  # type: ignore[arg-type]


def test_a_message_in_place_of_a_delta() -> None:
    """Some servers send the whole answer as one event."""
    message = {"content": "x", "tool_calls": None}
    assert read(event(choices=[{"message": message, "finish_reason": "stop"}]), DONE).texts == ("x",)


def test_the_number_of_choices_is_bounded() -> None:
    """More than anyone asks for is no answer."""
    with pytest.raises(InvalidResponseError, match="more than 1024 choices"):
        read(*(delta(index, content="x") for index in range(1100)))


@pytest.mark.parametrize("piece", [b"x" * (1 << 20), b"data: " + b"x" * (1 << 20) + b"\n"], ids=["line", "event"])
def test_an_event_is_bounded(piece: bytes) -> None:
    """One that never ends is given up."""
    with pytest.raises(InvalidResponseError, match="longer than"):
        read(*[piece] * 20)


def test_the_answer_is_bounded() -> None:
    """As is what all events together leave behind."""
    with pytest.raises(InvalidResponseError, match="longer than"):
        read(*[delta(content="x" * (1 << 20))] * 65)


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
