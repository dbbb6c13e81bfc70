"""The SDK's clients, as NeMo Curator's users know them."""

from __future__ import annotations

import asyncio
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from nemo_llm_stage.client.errors.foreign import as_request_error
from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.client.llm_client import GenerationConfig, LLMClient
from nemo_llm_stage.client.openai_client import AsyncOpenAIClient, OpenAIClient
from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import ClientError, ConfigError, FatalError, RequestTimeoutError
from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer

from .conftest import MESSAGES, RawServer, response

KEY = "sk-very-secret-0123456789"


def query(client: Any, **request: Any) -> list[str]:
    """`query_model` of either client."""
    if isinstance(client, LLMClient):
        texts = client.query_model(messages=MESSAGES, model="sim", **request)
        client.client.close()
        return texts

    async def scenario() -> list[str]:
        try:
            return await client.query_model(messages=MESSAGES, model="sim", **request)
        finally:
            await client.aclose()

    return asyncio.run(scenario())


@pytest.fixture(params=[OpenAIClient, AsyncOpenAIClient], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Any:
    return lambda **kwargs: request.param(api_key=KEY, **kwargs)


@pytest.mark.parametrize("stream", [False, True])
def test_texts_come_whole(make: Any, stream: bool) -> None:
    """N texts, streamed or not."""
    with SimulatedServer() as server:
        texts = query(make(base_url=server.base_url), generation_config={"n": 2, "stream": stream})
    assert texts == [expected_answer(MESSAGES, choice=choice) for choice in range(2)]


def test_what_create_gets(make: Any) -> None:
    """The parameters of the config under the SDK's names; top_k is not among them."""
    with SimulatedServer() as server:
        query(make(base_url=server.base_url), generation_config=GenerationConfig(stop=["x"], seed=3))
        body = server.requests[0].body
    assert body == {
        "messages": MESSAGES,
        "model": "sim",
        "max_tokens": 2048,
        "n": 1,
        "seed": 3,
        "stop": ["x"],
        "stream": False,
        "temperature": 0.0,
        "top_p": 0.95,
    }


def test_extra_kwargs_override_and_are_told_of(make: Any) -> None:
    """Once for each client, not for each request."""
    config = {"extra_kwargs": {"seed": 5, "extra_body": {"top_k": 4}}}
    with SimulatedServer() as server:
        client = make(base_url=server.base_url)
        with pytest.warns(UserWarning, match="extra_kwargs overrides seed"):
            query(client, generation_config=config)
        body = server.requests[0].body
        assert (body["seed"], body["top_k"]) == (5, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            query(pickle.loads(pickle.dumps(client)), generation_config=config)


@pytest.mark.parametrize("request_", [{"generation_config": {"top_k": 5}}, {"conversation_formatter": object()}])
def test_what_is_not_used_is_told_of(make: Any, request_: dict[str, Any]) -> None:
    """The OpenAI protocol knows no top_k, and formats chats itself."""
    with SimulatedServer() as server:
        client = make(base_url=server.base_url)
        with pytest.warns(UserWarning, match=f"is not used in an {type(client).__name__}"):
            query(client, **request_)
        assert "top_k" not in server.requests[0].body


def test_the_sdks_errors_surface(make: Any) -> None:
    """`query_model` raises what the SDK raised."""
    with SimulatedServer(faults=[Fault(400)]) as server, pytest.raises(openai.BadRequestError):
        query(make(base_url=server.base_url))


def test_one_layer_retries() -> None:
    """max_retries sends more than the first, not that times the SDK's own."""
    with SimulatedServer(faults=[Fault(500)]) as server:
        with pytest.raises(openai.InternalServerError):
            query(AsyncOpenAIClient(max_retries=2, base_delay=0, base_url=server.base_url, api_key=KEY))
        assert server.stats.num_requests == 3


def test_the_response_itself() -> None:
    """`query_model_response` returns the SDK's object, with retries, never streamed."""

    async def scenario() -> ChatCompletion:
        client = AsyncOpenAIClient(base_url=server.base_url, api_key=KEY, base_delay=0)
        config = {"stream": True}
        reply = await client.query_model_response(messages=MESSAGES, model="sim", generation_config=config)
        await client.aclose()
        return reply

    with SimulatedServer(faults=[Fault(503, attempts=1)]) as server:
        reply = asyncio.run(scenario())
    assert isinstance(reply, ChatCompletion)
    assert reply.choices[0].message.content == expected_answer(MESSAGES)
    assert reply.usage is not None


def test_the_sdks_client_is_there_after_setup(make: Any) -> None:
    """As `client`, with the keyword arguments it was given, its retries of our client off."""
    client = make(base_url="http://localhost:1/v1", organization="o")
    client.setup()
    assert (str(client.client.base_url), client.client.organization) == ("http://localhost:1/v1/", "o")
    assert client.client.max_retries == (0 if isinstance(client, AsyncOpenAIClient) else 2)
    assert client.timeout == 120


def test_an_sdk_client_of_ones_own_is_used() -> None:
    """Setting `client` takes the place of the one that would be made."""

    async def scenario() -> list[str]:
        client = AsyncOpenAIClient(api_key="other")
        client.client = openai.AsyncOpenAI(base_url=server.base_url, api_key=KEY)
        texts = await client.query_model(messages=MESSAGES, model="sim")
        await client.aclose()
        await client.client.close()
        return texts

    with SimulatedServer(api_key=KEY) as server:
        assert asyncio.run(scenario()) == [expected_answer(MESSAGES)]


def test_the_key_shows_nowhere(make: Any) -> None:
    """Not in repr, not in the settings, not in the error of a server that repeats it."""
    client = make(default_headers={"X-Team": "another-secret"})
    assert KEY not in f"{client!r} {client} {vars(client)}"
    assert "another-secret" not in repr(client)

    async def scenario() -> None:
        async with RawServer([response(b"wrong key: " + KEY.encode(), status="401 No")]) as server:
            client = AsyncOpenAIClient(base_url=server.base_url, api_key=KEY)
            try:
                await client.complete(messages=MESSAGES, model="m")
            finally:
                await client.aclose()

    with pytest.raises(FatalError) as caught:
        asyncio.run(scenario())
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("source", ["api_key_env", "api_key_file"])
def test_a_key_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """By its variable or its file, read where requests are sent from."""
    monkeypatch.setenv("SOME_KEY", KEY)
    (tmp_path / "key").write_text(f"{KEY}\n")
    value = "SOME_KEY" if source == "api_key_env" else str(tmp_path / "key")

    async def scenario() -> list[str]:
        client = AsyncOpenAIClient(base_url=server.base_url, **{source: value})
        assert f"{source}={value!r}" in repr(client)
        texts = await client.query_model(messages=MESSAGES, model="sim")
        await client.aclose()
        return texts

    with SimulatedServer(api_key=KEY) as server:
        assert asyncio.run(scenario()) == [expected_answer(MESSAGES)]
    with pytest.raises(ConfigError, match="NOT_THERE"):
        AsyncOpenAIClient(base_url="http://localhost:1", api_key_env="NOT_THERE").setup()
    with pytest.raises(ConfigError, match="not several"):
        AsyncOpenAIClient(api_key=KEY, **{source: value})


def test_no_key_is_the_sdks_error(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In setup and in `query_model` as it is; in `complete` as a reason to stop."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    client = AsyncOpenAIClient(base_url="http://localhost:1")
    with pytest.raises(openai.OpenAIError):
        client.setup()
    with pytest.raises(FatalError, match="api_key"):
        asyncio.run(client.complete(messages=MESSAGES, model="m"))


def test_a_drip_ends_at_the_timeout() -> None:
    """The SDK's timeout starts anew with every byte; the client's does not."""
    with SimulatedServer(faults=[Fault("slow_drip", seconds=5)]) as server, pytest.raises(RequestTimeoutError):
        query(AsyncOpenAIClient(base_url=server.base_url, api_key=KEY, timeout=0.2, max_retries=0))


ODD_CHOICE = {
    "index": "0",
    "message": {"role": "assistant", "content": "fine", "reasoning": [{"type": "text", "text": "so"}], "refusal": {}},
    "finish_reason": {"type": "stop"},
    "logprobs": [],
}
ODD_ANSWER = {"choices": [ODD_CHOICE], "model": {}, "usage": {"prompt_tokens": "3", "completion_tokens": True}}
ODD_STREAM = (
    {"choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": "fi"}, {"type": "text", "text": 5}]}}]},
    {"choices": [{"index": 0, "delta": {"content": "ne", "reasoning_details": [{"text": "so"}]}}], "model": []},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": ["stop"]}], "usage": {"prompt_tokens": [3]}},
)


@pytest.mark.parametrize("make_client", [AsyncOpenAIClient, AsyncHTTPClient])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_odd_beside_the_text_is_none(make_client: Any, stream: bool) -> None:
    """For either client by the same rules; the answer is kept."""
    events = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in ODD_STREAM) + b"data: [DONE]\n\n"
    body = events if stream else json.dumps(ODD_ANSWER).encode()
    kind = "text/event-stream" if stream else "application/json"

    async def scenario() -> Completion:
        async with RawServer([response(body, f"content-type: {kind}")]) as server:
            client = make_client(base_url=server.base_url, api_key=KEY)
            completion = await client.complete(messages=MESSAGES, model="m", generation_config={"stream": stream})
            await client.aclose()
            return completion

    completion = asyncio.run(scenario())
    assert (completion.texts, completion.finish_reasons, completion.reasoning) == (("fine",), (None,), ("so",))
    assert (completion.usage, completion.model, completion.logprobs) == (None, None, ())


def all_errors(base: type[BaseException]) -> list[type[BaseException]]:
    return [base, *(error for child in base.__subclasses__() for error in all_errors(child))]


@pytest.mark.parametrize("error_type", all_errors(openai.OpenAIError), ids=lambda cls: cls.__name__)
def test_no_error_of_the_sdk_is_unmapped(error_type: type[BaseException]) -> None:
    """Whatever the SDK raises has a kind that says what to do next."""
    error = error_type.__new__(error_type, "message")
    assert type(as_request_error(error)) is not ClientError
