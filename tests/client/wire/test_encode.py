"""What is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nemo_llm_stage.client.llm_client import ConversationFormatter, GenerationConfig
from nemo_llm_stage.client.wire import encode_request
from nemo_llm_stage.errors import (
    ConfigError,
    PromptError,
)

MESSAGES = [{"role": "user", "content": "hi"}]


def sent(config: GenerationConfig | None = None, **extra: Any) -> dict[str, Any]:
    config = config or GenerationConfig(extra_kwargs=extra or None)
    return json.loads(encode_request(MESSAGES, "m", config).body)


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
