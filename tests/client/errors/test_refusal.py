"""What a server's refusal is to the user: its words and a type."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from nemo_llm_stage.client.errors.refusal import error_of_refusal, read_refusal
from nemo_llm_stage.client.errors.words import MAX_MESSAGE_CHARS, MAX_WORDS_CHARS
from nemo_llm_stage.errors import (
    AuthenticationError,
    BadRequestError,
    ContentFilterError,
    ContextOverflowError,
    FatalError,
    NotFoundError,
    RateLimitError,
    RequestError,
    ServerError,
)


def refused(status: int, body: Any, **more: Any) -> RequestError:
    return error_of_refusal(status, body if isinstance(body, bytes) else json.dumps(body).encode(), **more)


BODIES = [
    ({"error": {"message": "No.", "type": "BadRequestError", "param": None, "code": 400}}, "No."),  # vLLM, OpenAI
    ({"object": "error", "message": "No.", "type": "BadRequestError", "code": 400}, "No."),  # older vLLM, SGLang
    ({"error": {"code": 400, "message": "No.", "type": "invalid_request_error"}}, "No."),  # llama.cpp
    ({"error": "No."}, "No."),  # Ollama, TGI
    ({"detail": "No."}, "No."),  # FastAPI
    ({"detail": [{"loc": ["body", "n"], "msg": "not a number", "type": "x"}]}, "body.n: not a number"),
    ([{"error": {"message": "No."}}], "No."),  # Gemini
    ({"message": "No."}, "No."),  # API gateways
    (b"No.\n  Not  now.\n", "No. Not now."),
    (b"<html><head><title>502 Bad Gateway</title></head><body><h1>nginx</h1></body></html>", "502 Bad Gateway"),
    (b"<!DOCTYPE html><body><script>x()</script><p>Sign in</p></body>", "Sign in"),
    (b"", ""),
    ({}, ""),
    (b"null", ""),
    (b"\xff\xfe", "\ufffd\ufffd"),
]


@pytest.mark.parametrize(("body", "text"), BODIES)
def test_words_are_found_in_every_shape(body: Any, text: str) -> None:
    """Each server has its own way to put an error."""
    assert read_refusal(body if isinstance(body, bytes) else json.dumps(body).encode()).text == text


def test_status_and_words_make_the_message() -> None:
    """The status is always told; a silent server gets the standard's words."""
    assert str(refused(400, {"error": {"message": "temperature must be non-negative"}})) == (
        "HTTP 400: temperature must be non-negative."
    )
    assert str(refused(503, b"")).startswith("HTTP 503: Service Unavailable")
    assert "HTTP 599" in str(refused(599, b""))


def test_long_messages_are_cut() -> None:
    """A whole page does not fill the user's column."""
    assert len(str(refused(500, b"x" * 10_000))) < MAX_MESSAGE_CHARS + 20


def test_secrets_do_not_come_back() -> None:
    """A server that repeats the key does not get it into a log, even where the message is cut."""
    for body in (b"key sk-abcdef is wrong", b"x" * (MAX_MESSAGE_CHARS - 5) + b"sk-abcdef"):
        assert "sk-a" not in str(refused(401, body, secrets=["sk-abcdef"]))


TOO_LONG = [
    "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens.",
    "The input (3000 tokens) is longer than the model's context length (2048 tokens).",
    "the request exceeds the available context size. try increasing the context size or enable context shift",
    "Prompt contains 40000 tokens, too large for model with 32768 maximum context length",
    "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens",
    "The input token count (9000) exceeds the maximum number of tokens allowed (8192).",
    "prompt is too long: 210000 tokens > 200000 maximum",
    "max_tokens=5000 cannot be greater than max_model_len=2048.",
]


@pytest.mark.parametrize("message", TOO_LONG)
def test_too_long_is_told_apart(message: str) -> None:
    """Each server says in its own words that the prompt does not fit."""
    assert type(refused(400, {"error": {"message": message}})) is ContextOverflowError


@pytest.mark.parametrize(
    "details",
    [{"code": "context_length_exceeded"}, {"type": "exceed_context_size_error"}, {"param": "input_tokens"}],
)
def test_too_long_by_its_code(details: dict[str, str]) -> None:
    """A code says it without words."""
    assert type(refused(400, {"error": {"message": "no", **details}})) is ContextOverflowError


MAP = [
    (400, {"error": {"message": "Grammar error: unknown type"}}, BadRequestError),
    (400, {"error": {"message": "filtered", "code": "content_filter"}}, ContentFilterError),
    (401, {}, AuthenticationError),
    (402, {"error": {"message": "Insufficient Balance"}}, FatalError),
    (403, {}, AuthenticationError),
    (404, {}, NotFoundError),
    (405, {}, BadRequestError),
    (400, {"error": {"message": "Failed to generate JSON.", "code": "json_validate_failed"}}, ServerError),  # Groq
    (413, {}, BadRequestError),
    (420, {}, ServerError),
    (424, {}, ServerError),
    (498, {}, ServerError),
    (429, {"error": {"message": "Request too large for m: Limit 30000, Requested 342389."}}, ContextOverflowError),
    (429, {"error": {"message": "Rate limit reached: Limit 30000, Used 29000, Requested 3000."}}, RateLimitError),
    (422, {}, BadRequestError),
    (429, {"error": {"message": "slow down"}}, RateLimitError),
    (429, {"error": {"message": "no credit", "code": "insufficient_quota"}}, FatalError),
    (500, {"error": {"message": "the maximum context length was computed wrongly"}}, ServerError),
    (503, {}, ServerError),
    (529, {}, ServerError),
]


@pytest.mark.parametrize(("status", "body", "error_type"), MAP)
def test_status_and_code_make_the_type(status: int, body: Any, error_type: type[RequestError]) -> None:
    """The type says what to do next."""
    error = refused(status, body)
    assert (type(error), error.status) == (error_type, status)


def test_unknown_model_is_named() -> None:
    """Whether or not the server repeats its name."""
    assert "'nope'" in str(
        refused(404, {"error": {"message": "No such model.", "code": "model_not_found"}}, model="nope")
    )
    told = str(refused(404, {"error": {"message": "The model `nope` does not exist.", "param": "model"}}, model="nope"))
    assert told.count("nope") == 1


def test_unknown_route_names_the_address() -> None:
    """A wrong base_url shows as a 404 of some other kind."""
    message = str(refused(404, {"detail": "Not Found"}, url="http://h/chat/completions", model="m"))
    assert "http://h/chat/completions" in message
    assert "base_url" in message


def test_retry_after_is_kept() -> None:
    """What the server asked for is there for the retry."""
    error = refused(429, {}, retry_after_s=3.0)
    assert isinstance(error, RateLimitError)
    assert error.retry_after_s == 3.0


HOSTILE = {
    "titles": b"<title>" * 150_000,
    "scripts": b"<script>" * 130_000,
    "open tags": b"<html>" + b"<" * 1_000_000,
    "comments": b"<html>" + b"<!-- " * 200_000,
    "digits": b"maximum context length is " + b"7" * 1_000_000,
    "commas": b"7," * 500_000,
    "words": b"maximum model " * 70_000,
    "exceeds": b"exceeds " * 125_000,
    "allowed": b"Request too large " * 60_000,
    "blanks": b" " * 1_000_000,
    "json text": json.dumps({"error": {"message": "exceeds 7,7" * 90_000}}).encode(),
    "deep": b"[" * 450 + b"]" * 450,
    "deep objects": b'{"error":' * 450 + b"1" + b"}" * 450,
    "very deep": b"[" * 500_000,
    "wide": b"[" + b'["x"],' * 150_000 + b"[]]",
    "huge numbers": b'{"error": {"code": 1e999, "n_ctx": ' + b"9" * 5_000 + b"}}",
    "odd types": b'{"error": {"message": {"message": []}, "code": {}, "type": [], "param": 5, "loc": 3, "msg": 4}}',
    "odd places": json.dumps({"detail": [{"loc": [[[1]], {}, None, "n"], "msg": "no"}]}).encode(),
    "surrogates": b'{"error": "\\ud800"}',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("status", [400, 429, 500])
def test_no_body_holds_the_loop_up(body: bytes, status: int) -> None:
    """Whatever a server sends becomes one of our errors, in well under 50 ms of CPU for a megabyte."""
    started = time.process_time()
    error = refused(status, body, secrets=["sk-abcdef"])
    assert time.process_time() - started < 0.05
    assert isinstance(error, RequestError)
    assert len(str(error)) < MAX_MESSAGE_CHARS + 50


def test_a_secret_at_the_cut_of_a_long_body_does_not_come_back() -> None:
    """Secrets are hidden before anything is cut off."""
    body = b"x" * (MAX_WORDS_CHARS // 2 - 3) + b"sk-abcdef" + b"x" * 50_000
    assert "sk-" not in read_refusal(body, ["sk-abcdef"]).words
