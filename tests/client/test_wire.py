"""What is sent, and what counts as an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nemo_llm_stage.client.llm_client import ConversationFormatter, GenerationConfig
from nemo_llm_stage.client.wire import completion_of_answer, decode_answer, encode_request
from nemo_llm_stage.core import Usage
from nemo_llm_stage.errors import (
    BadRequestError,
    ConfigError,
    ContentFilterError,
    ContextOverflowError,
    InvalidResponseError,
    ParseError,
    PromptError,
    RateLimitError,
    RequestError,
    TruncatedError,
)

MESSAGES = [{"role": "user", "content": "hi"}]


def sent(config: GenerationConfig | None = None, **extra: Any) -> dict[str, Any]:
    config = config or GenerationConfig(extra_kwargs=extra or None)
    return json.loads(encode_request(MESSAGES, "m", config).body)


def answer(message: dict[str, Any] | None = None, finish_reason: Any = "stop", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}], **more}


def test_defaults_are_sent_and_none_is_not() -> None:
    """Every parameter goes out under its own name; None leaves it to the server."""
    assert sent() == {
        "model": "m",
        "messages": MESSAGES,
        "max_tokens": 2048,
        "n": 1,
        "seed": 0,
        "temperature": 0.0,
        "top_p": 0.95,
    }
    nothing = GenerationConfig(max_tokens=None, n=None, seed=None, temperature=None, top_p=None)
    assert sent(nothing) == {"model": "m", "messages": MESSAGES}


def test_top_k_and_stop_are_sent() -> None:
    """Servers other than OpenAI's take top_k."""
    body = sent(GenerationConfig(top_k=5, stop=["\n"]))
    assert (body["top_k"], body["stop"]) == (5, ["\n"])


def test_extra_kwargs_override() -> None:
    """They win over the config; None takes a parameter out; extra_body is merged in as it is."""
    body = sent(seed=None, temperature=1, extra_body={"min_p": 0.1, "top_p": None, "chat_template_kwargs": {"a": 1}})
    assert "seed" not in body
    assert (body["temperature"], body["min_p"], body["top_p"]) == (1, 0.1, None)
    assert body["chat_template_kwargs"] == {"a": 1}


def test_transport_extras_stay_out_of_the_body() -> None:
    """Headers, query and timeout mean what they mean to the openai SDK."""
    extra = {"extra_headers": {"X-Tag": 1}, "extra_query": {"api-version": "2"}, "timeout": 7}
    request = encode_request(MESSAGES, "m", GenerationConfig(extra_kwargs=extra))
    assert (request.headers, request.path, request.timeout_s) == ({"X-Tag": "1"}, "chat/completions?api-version=2", 7)
    assert not json.loads(request.body).keys() & extra.keys()


@pytest.mark.parametrize("extra", [{"extra_headers": "x"}, {"extra_body": 1}, {"timeout": -1}, {"timeout": "5"}])
def test_transport_extras_are_checked(extra: dict[str, Any]) -> None:
    """A wrong type is named before anything is sent."""
    with pytest.raises(ConfigError, match=next(iter(extra))):
        sent(**extra)


def test_streams_ask_for_usage() -> None:
    """A stream tells its tokens only when asked; the user's own stream_options stay."""
    assert sent(GenerationConfig(stream=True))["stream_options"] == {"include_usage": True}
    assert sent(stream=True, stream_options={"include_usage": False})["stream_options"] == {"include_usage": False}


def test_formatter_makes_a_text_completion() -> None:
    """The formatted text goes to /completions in place of the messages."""

    class Shout(ConversationFormatter):
        def format_conversation(self, conv: list[dict[str, Any]]) -> str:
            return conv[0]["content"].upper()

    request = encode_request(MESSAGES, "m", GenerationConfig(), Shout())
    body = json.loads(request.body)
    assert (request.path, body["prompt"]) == ("completions", "HI")
    assert "messages" not in body


def test_keys_that_are_numbers_are_written() -> None:
    """logit_bias has token ids as keys."""
    assert sent(logit_bias={50256: -100})["logit_bias"] == {"50256": -100}


@pytest.mark.parametrize("text", ["\ud800", object()], ids=["surrogate", "object"])
def test_what_json_cannot_hold_fails_the_row(text: Any) -> None:
    """Half a surrogate pair from a broken text is that row's problem."""
    with pytest.raises(PromptError):
        encode_request([{"role": "user", "content": text}], "m", GenerationConfig())


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
    (answer({"content": None, "reasoning_content": "hm"}), InvalidResponseError),
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
