"""What counts as an answer, and what its fields may hold."""

from __future__ import annotations

import contextlib
import gc
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_llm_stage.client.wire import StreamedAnswer, completion_of_answer, decode_answer
from nemo_llm_stage.client.wire.lenient_json import MAX_VALUES
from nemo_llm_stage.core import Completion, Usage
from nemo_llm_stage.errors import (
    BadRequestError,
    ContentFilterError,
    ContextOverflowError,
    InvalidResponseError,
    NoAnswerError,
    ParseError,
    RateLimitError,
    RequestError,
    TruncatedError,
)


def answer(message: dict[str, Any] | None = None, finish_reason: Any = "stop", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}], **more}


def test_completion_of_a_chat() -> None:
    """Every field is found where servers put it."""
    message = {"content": "yes", "reasoning_content": "hm"}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}
    completion = completion_of_answer(answer(message, "length", usage=usage, model="x"), endpoint="e", latency_s=2.0)
    assert (completion.texts, completion.finish_reasons, completion.reasoning) == (("yes",), ("length",), ("hm",))
    assert (completion.usage, completion.model, completion.endpoint) == (Usage(9, 3, 8), "x", "e")
    assert completion.latency_s == 2.0


def test_completion_of_a_text() -> None:
    """/completions keeps its text beside the choice."""
    completion = completion_of_answer({"choices": [{"text": "on", "finish_reason": "stop"}]})
    assert (completion.texts, completion.usage, completion.logprobs) == (("on",), None, ())


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": None}])
def test_unknown_counts_are_none(usage: Any) -> None:
    """What the server does not tell is not made up."""
    completion = completion_of_answer(answer({"content": "x"}, usage=usage))
    assert completion.usage == (Usage(9, 3, None) if usage else None)


def test_llama_cpp_tells_its_cache_in_timings() -> None:
    """llama.cpp counts cached tokens beside the usage."""
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    assert completion_of_answer(answer({"content": "x"}, usage=usage, timings={"cache_n": 4})).usage == Usage(9, 3, 4)


@pytest.mark.parametrize("odd", [[], {}, 5, True, None], ids=repr)
def test_the_type_of_a_part_may_be_anything(odd: object) -> None:
    """Of content and of thinking."""
    part = {"type": odd, "text": "a"}
    assert completion_of_answer(answer({"content": [part], "reasoning": [part]})).texts == ("a",)


def test_content_in_parts_is_joined() -> None:
    """Some servers answer in a list of parts."""
    parts = [{"type": "thinking", "thinking": "…"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert completion_of_answer(answer({"content": parts})).texts == ("ab",)


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "eos_token"])
def test_an_empty_text_is_an_answer(reason: str) -> None:
    """The model may have nothing to say."""
    assert completion_of_answer(answer({"content": ""}, reason)).texts == ("",)


NO_ANSWERS = [
    (answer({"content": None}), InvalidResponseError),
    (answer({"content": ""}, None), InvalidResponseError),
    (answer({"content": "half"}, "abort"), InvalidResponseError),
    (answer({"content": "half"}, "error"), InvalidResponseError),
    (answer({"content": "half"}, "insufficient_system_resource"), InvalidResponseError),
    (answer({"content": None, "reasoning_content": "hm"}), NoAnswerError),
    (answer({"content": None, "reasoning_content": "hm"}, "length"), TruncatedError),
    (answer({"content": "", "reasoning": "hm"}, "length"), TruncatedError),
    (answer({"content": "half"}, "content_filter"), ContentFilterError),
    (answer({"content": None, "refusal": "I cannot."}), ContentFilterError),
    (answer({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls"), ParseError),
    ({"choices": []}, InvalidResponseError),
    ({"choices": None}, InvalidResponseError),
    ({"choices": ["x"]}, InvalidResponseError),
    ({}, InvalidResponseError),
    ({"error": {"message": "overloaded"}}, InvalidResponseError),
    ({"error": {"message": "slow down", "code": 429}}, RateLimitError),
    ({"object": "error", "message": "bad", "code": 400}, BadRequestError),
    ({"error": {"message": "maximum context length is 5", "code": 400}}, ContextOverflowError),
]


@pytest.mark.parametrize(("whole", "error_type"), NO_ANSWERS)
def test_success_without_an_answer_is_typed(whole: dict[str, Any], error_type: type[RequestError]) -> None:
    """HTTP 200 is not success."""
    with pytest.raises(RequestError) as caught:
        completion_of_answer(whole)
    assert type(caught.value) is error_type


@pytest.mark.parametrize("body", [b"", b"<html><title>Sign in</title></html>", b'{"choices": [', b"[1]", b"\xff\xfe"])
def test_a_body_that_is_no_answer(body: bytes) -> None:
    """A body that is no JSON object may be right the next time."""
    with pytest.raises(InvalidResponseError):
        decode_answer(body)


UNITS = [b"[]", b"{}", b"0", b'"a"', b'{"a":0}', b"[[]]", b'{"type":"text","text":"a"}']


@pytest.mark.parametrize("unit", UNITS, ids=bytes.decode)
def test_the_values_of_an_answer_are_bounded(unit: bytes) -> None:
    """0.9 MB of `[],` once held up the event loop for 70 ms: too many are counted and never read."""
    num = (MAX_VALUES + unit.count(b"[") - 50) // (unit.count(b"[") + unit.count(b"{") + unit.count(b",") + 1)
    within, beyond = (
        b'{"choices":[{"message":{"content":"x","y":[%b]}}]}' % b",".join([unit] * n) for n in (num - 50, num + 100)
    )
    assert completion_of_answer(decode_answer(within)).texts == ("x",)
    assert decode_answer(beyond, is_bounded=False)["choices"][0]["message"]["content"] == "x"
    with pytest.raises(InvalidResponseError, match="more than 150000 values") as caught:
        decode_answer(beyond)
    assert len(str(caught.value)) < 200


def test_a_long_text_is_an_answer() -> None:
    """10 MB of prose are one value, and its commas are few; 20 MB were asked for by nobody."""
    prose = "Moles who are small and dig all day need no eyes to speak of, or so it is said. " * 120_000
    assert completion_of_answer(decode_answer(json.dumps(answer({"content": prose})).encode())).texts == (prose,)
    with pytest.raises(InvalidResponseError, match="longer than 16777216 bytes"):
        decode_answer(json.dumps(answer({"content": prose * 2})).encode())


def test_the_garbage_collector_goes_on_after_a_large_answer() -> None:
    """It waits while the answer is read, whatever comes of that."""
    for body in (b'{"a": [%b]}' % b",".join([b"0"] * 90_000), b"<p>" * 90_000, b"x," * 300_000):
        with contextlib.suppress(InvalidResponseError):
            decode_answer(body)
        assert gc.isenabled()


@pytest.mark.parametrize("choice", [{}, 0, {"message": {"content": "x"}}], ids=repr)
def test_the_number_of_choices_is_bounded(choice: Any) -> None:
    """Each that is no answer has an error of its own: 100,000 took half a second."""
    with pytest.raises(InvalidResponseError, match="more than 1024 choices"):
        completion_of_answer({"choices": [choice] * 1025})


@pytest.mark.parametrize("odd", ["3", [3], True, 1 << 64, -1, 0.5, {}, float("inf")], ids=repr)
def test_an_odd_count_is_unknown(odd: Any) -> None:
    """A count is an int from 0 to below 2^53; the answer stays."""
    usage = {"prompt_tokens": odd, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": odd}}
    assert completion_of_answer(answer({"content": "x"}, usage=usage)).usage == Usage(None, 2, None)


def test_a_whole_float_is_a_count() -> None:
    """JavaScript's servers know no other numbers."""
    usage = {"prompt_tokens": 3.0, "completion_tokens": 2}
    assert completion_of_answer(answer({"content": "x"}, usage=usage)).usage == Usage(3, 2, None)


@pytest.mark.parametrize("odd", [{}, 5, [], True, ""], ids=repr)
def test_an_odd_side_field_is_none(odd: Any) -> None:
    """It costs neither the answer nor the row."""
    message = {"content": "x", "reasoning_content": odd, "reasoning": odd, "refusal": odd, "tool_calls": odd}
    whole = answer(message, odd, usage=odd, model=odd, timings=odd, id=odd, created=odd)
    whole["choices"][0] |= {"logprobs": [odd], "index": odd}
    assert completion_of_answer(whole) == Completion(("x",), (None,), (None,))


def test_a_name_is_bounded() -> None:
    """A server may call its model anything."""
    completion = completion_of_answer(answer({"content": "x"}, "y" * 1000, model="m" * 1000))
    assert (len(completion.model or ""), len(completion.finish_reasons[0] or "")) == (200, 200)


@pytest.mark.parametrize(
    "beside",
    [
        {"reasoning_content": "so"},
        {"reasoning": "so"},
        {"reasoning": [{"type": "text", "text": "s"}, {"type": "text", "text": "o"}]},
        {"reasoning": {"content": "so"}},
        {"reasoning_details": [{"type": "reasoning.text", "text": "so"}, {"type": "reasoning.encrypted", "data": "?"}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "so"}]},
        {"thinking": "so"},
        {"thinking_blocks": [{"type": "thinking", "thinking": "so", "signature": "?"}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "so"}]},
                {"type": "text", "text": "x"},
            ]
        },
    ],
    ids=str,
)
def test_thinking_is_found(beside: dict[str, Any]) -> None:
    """Wherever servers put it, as a text or in parts."""
    completion = completion_of_answer(answer({"content": "x", **beside}))
    assert (completion.texts, completion.reasoning) == (("x",), ("so",))


def test_a_part_without_a_text_is_passed_over() -> None:
    """The other parts are the answer."""
    parts = [{"type": "text", "text": 5}, {"type": "text", "text": "a"}, "b", 7, None, {"type": "image"}]
    assert completion_of_answer(answer({"content": parts})).texts == ("ab",)


@pytest.mark.parametrize("content", [5, True, [], {}, [{"type": "text", "text": 5}]], ids=repr)
def test_a_content_that_is_no_text_is_no_answer(content: Any) -> None:
    """It may be one the next time."""
    with pytest.raises(InvalidResponseError, match="no text"):
        completion_of_answer(answer({"content": content}))


def test_a_refusal_in_a_part() -> None:
    """The Responses protocol's way to refuse."""
    with pytest.raises(ContentFilterError, match="I cannot"):
        completion_of_answer(answer({"content": [{"type": "refusal", "refusal": "I cannot"}]}))


@pytest.mark.parametrize("reason", ["STOP", "COMPLETE", "eos", "model_length", "MAX_TOKENS", "never heard of"])
def test_an_unknown_reason_with_a_text_is_an_answer(reason: str) -> None:
    """In the server's own word; buying it again brings the same."""
    completion = completion_of_answer(answer({"content": "x"}, reason))
    assert (completion.texts, completion.finish_reasons) == (("x",), (reason,))


@pytest.mark.parametrize("reason", ["abort", "Error", "cancelled", "ABORTED", "failed", "timeout", "error: oom"])
def test_a_broken_off_answer_is_asked_again(reason: str) -> None:
    """The server says that there should have been more."""
    with pytest.raises(InvalidResponseError, match="broke the answer off"):
        completion_of_answer(answer({"content": "half"}, reason))


@pytest.mark.parametrize("content", [None, ""])
def test_thinking_alone_has_an_error_of_its_own(content: str | None) -> None:
    """At temperature 0 it is the same the next time."""
    with pytest.raises(NoAnswerError, match="only thought and gave no answer"):
        completion_of_answer(answer({"content": content, "reasoning": "hm"}))


def choices(*indexes: Any, **more: Any) -> dict[str, Any]:
    parts = [
        {"index": index, "message": {"content": str(place)}, "finish_reason": "stop"}
        for place, index in enumerate(indexes)
    ]
    return {"choices": parts, **more}


@pytest.mark.parametrize(
    ("indexes", "texts"),
    [
        ((2, 0, 1), ("1", "2", "0")),
        ((7, -1), ("1", "0")),
        ((1 << 70, 0), ("1", "0")),
        ((0, 0, 0), ("0", "1", "2")),
        ((1, None), ("0", "1")),
        ((1, "0"), ("0", "1")),
        ((True, False), ("0", "1")),
    ],
    ids=repr,
)
def test_choices_are_in_the_order_of_their_indexes(indexes: tuple[Any, ...], texts: tuple[str, ...]) -> None:
    """Where each has a number of its own; else as they came."""
    assert completion_of_answer(choices(*indexes)).texts == texts


def test_a_filtered_choice_does_not_cost_the_others() -> None:
    """They are paid for."""
    whole = choices(0, 1)
    whole["choices"][0] = {"index": 0, "message": {"content": None}, "finish_reason": "content_filter"}
    completion = completion_of_answer(whole)
    assert (completion.texts, completion.finish_reasons) == (("", "1"), ("content_filter", "stop"))
    assert completion.choice_errors == ("content_filter: The server filtered the answer.", None)
    assert (completion.error_of(0) is None, completion.error_of(1) is None) == (False, True)


def test_an_answer_without_a_good_choice_fails() -> None:
    """With the first one's error."""
    whole = choices(0, 1)
    for choice in whole["choices"]:
        choice["finish_reason"] = "content_filter"
    with pytest.raises(ContentFilterError):
        completion_of_answer(whole)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (rb'{"choices":[{"message":{"content":"a\ud83d\ude00 \ud800"},"finish_reason":"stop"}]}', "a😀 ?"),
        (b'{"choices":[{"message":{"content":"a\xff"},"finish_reason":"stop"}]}', "a\ufffd"),
        (b'\xef\xbb\xbf{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}', "a"),
        (b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop","logprobs":{"x":[NaN,-Infinity]}}]}', "a"),
        (b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"usage":{"total":%b}}' % (b"9" * 5000), "a"),
    ],
    ids=["surrogate", "utf-8", "byte-order mark", "NaN", "5,000 digits"],
)
def test_what_is_nearly_json_is_read(body: bytes, text: str) -> None:
    """One broken letter or number does not cost an answer."""
    completion = completion_of_answer(decode_answer(body))
    assert completion.texts == (text,)
    "".join(completion.texts).encode()


def test_a_stream_nobody_asked_for_is_read() -> None:
    """Also under a content type that says JSON."""
    body = (
        b'\n\ndata: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
        b'data: {"choices":[{"delta":{"content":"b"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )
    assert completion_of_answer(decode_answer(body)).texts == ("ab",)


@pytest.mark.parametrize("depth", [450, 1000])
@pytest.mark.parametrize("key", ["message", "junk"])
def test_depth_is_no_danger_in_an_error_with_a_status(key: str, depth: int) -> None:
    """What it says is lost, what it is is not."""
    body = b'{"error":{"code":400,"%b":%b%b}}' % (key.encode(), b"[" * depth, b"]" * depth)
    with pytest.raises(BadRequestError):
        completion_of_answer(decode_answer(body))


def test_a_context_limit_of_5000_digits() -> None:
    """It is a prompt that is too long, and no number."""
    message = f"This model's maximum context length is {'9' * 5000} tokens"
    with pytest.raises(ContextOverflowError) as caught:
        completion_of_answer({"error": {"message": message, "code": 400}})
    assert caught.value.max_context_tokens is None


@pytest.mark.parametrize("depth", [450, 1000])
@pytest.mark.parametrize("key", ["error", "choices", "junk"])
def test_depth_is_no_danger(key: str, depth: int) -> None:
    """Neither in an error nor elsewhere."""
    body = b'{"%b":%b%b}' % (key.encode(), b"[" * depth, b"]" * depth)
    with pytest.raises(RequestError):
        completion_of_answer(decode_answer(body))


KEYS = (
    *("choices", "message", "delta", "content", "text", "type", "index", "finish_reason", "reasoning", "usage"),
    *("refusal", "thinking", "logprobs", "model", "prompt_tokens", "error", "code", "tool_calls", "timings"),
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(("stop", "thinking"))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional=fields)


PART = objects(content=JSON | st.just("x"), reasoning=JSON, refusal=JSON, tool_calls=JSON, reasoning_details=JSON)
CHOICE = objects(
    index=JSON, message=PART | JSON, delta=PART | JSON, text=JSON, finish_reason=JSON | st.just("stop"), logprobs=JSON
)
ANSWER = objects(
    choices=st.lists(CHOICE | JSON, max_size=3) | JSON,
    usage=objects(prompt_tokens=JSON, completion_tokens=JSON, prompt_tokens_details=JSON) | JSON,
    **dict.fromkeys(("model", "error", "object", "timings", "code"), JSON),
)


def is_typed(completion: Completion) -> bool:
    """Whether each field has the type that its name says."""
    usage, reasons = completion.usage or Usage(), completion.finish_reasons
    counts = (usage.input_tokens, usage.output_tokens, usage.cached_tokens)
    num = len(completion.texts)
    return (
        all(type(text) is str and text.encode() is not None for text in completion.texts)
        and all(
            reason is None or (type(reason) is str and 0 < len(reason) <= 200) for reason in completion.finish_reasons
        )
        and all(text is None or type(text) is str for text in (*completion.reasoning, *completion.choice_errors))
        and all(count is None or (type(count) is int and 0 <= count < 2**53) for count in counts)
        and (completion.model is None or type(completion.model) is str)
        and all(logprobs is None or type(logprobs) is dict for logprobs in completion.logprobs)
        and len(reasons) == len(completion.reasoning) == num > 0
        and {len(completion.logprobs), len(completion.choice_errors)} <= {0, num}
    )


@given(ANSWER)
def test_any_json_is_a_typed_completion_or_a_request_error(whole: dict[str, Any]) -> None:
    """Never an exception of another kind, never a field of another type."""
    try:
        completion = completion_of_answer(decode_answer(json.dumps(whole).encode()))
    except RequestError:
        return
    assert is_typed(completion)


@settings(max_examples=50)
@given(st.lists(ANSWER, max_size=3))
def test_any_stream_is_a_typed_completion_or_a_request_error(chunks: list[dict[str, Any]]) -> None:
    """As for one that comes whole."""
    stream = StreamedAnswer()
    try:
        for chunk in chunks:
            if stream.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n"):
                break
        completion = completion_of_answer(stream.whole())
    except RequestError:
        return
    assert is_typed(completion)
