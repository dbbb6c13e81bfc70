"""The check before a run refuses only what the request itself would get."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.client.llm_client import AsyncLLMClient
from nemo_llm_stage.client.openai_client import AsyncOpenAIClient
from nemo_llm_stage.errors import AuthenticationError, ConnectionFailedError, NotFoundError

from .conftest import RawServer, answer_bytes, response

Make = Callable[..., AsyncLLMClient]
FINE = response(answer_bytes("H"))
LIST = response(json.dumps({"data": [{"id": "other"}]}).encode())


def refusal(status: str, **error: Any) -> bytes:
    return response(json.dumps({"error": error}).encode(), status=status)


def http_client(base_url: str, **settings: Any) -> AsyncLLMClient:
    return AsyncHTTPClient(base_url, **settings)


def openai_client(base_url: str, query: Any = None, **settings: Any) -> AsyncLLMClient:
    return AsyncOpenAIClient(base_url=base_url, **{"api_key": "k", "default_query": query, **settings})


@pytest.fixture(params=[http_client, openai_client], ids=["http", "openai"])
def make(request: pytest.FixtureRequest) -> Make:
    maker: Make = request.param
    return maker


def check(make: Make, *script: bytes, model: str = "m", **settings: Any) -> list[str]:
    """The first lines of what the check of one type of client sends to a server with this script."""

    async def scenario() -> list[str]:
        async with RawServer(*([answer] for answer in script)) as server:
            client = make(server.base_url, **settings)
            try:
                await client.check(model)
            finally:
                await client.aclose()
            return [head.partition("\r\n")[0] for head in server.heads]

    return asyncio.run(scenario())


PASSED = {
    "a list behind another key": (refusal("403 Forbidden", message="no access to models"), FINE),
    "a list that wants no key of ours": (refusal("401 Unauthorized", message="no"), FINE),
    "no list": (refusal("404 Not Found", message="Not Found"), FINE),
    "an alias": (LIST, FINE),
    "a base model": (
        LIST,
        refusal(
            "404 Not Found",
            message="This is not a chat model and thus not supported in the v1/chat/completions endpoint. Did you mean "
            "to use v1/completions?",
            type="invalid_request_error",
            param="model",
            code=None,
        ),
    ),
    "no chat template": (
        LIST,
        refusal("400 Bad Request", message="The model `m` has no chat template, so a model chat is not possible."),
    ),
    "another name for the limit": (
        LIST,
        refusal(
            "400 Bad Request",
            message="Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
            "instead.",
            param="max_tokens",
            code="unsupported_parameter",
        ),
    ),
    "a text that is forbidden": (LIST, refusal("403 Forbidden", message="this text is not allowed for this model")),
    "a route that is elsewhere": (LIST, response(b"<html>404 page not found</html>", status="404 Not Found")),
    "a busy server": (LIST, refusal("503 Unavailable", message="model is loading")),
}


@pytest.mark.parametrize("script", PASSED.values(), ids=PASSED.keys())
def test_what_proves_nothing_passes(make: Make, script: tuple[bytes, ...]) -> None:
    """The list is a hint; so is every refusal that rows might not get."""
    assert [line.split()[1] for line in check(make, *script)] == ["/v1/models", "/v1/chat/completions"]


UNKNOWN = {
    "OpenAI": refusal("404 Not Found", message="The model `m` does not exist.", code="model_not_found"),
    "vLLM": response(
        b'{"object":"error","message":"The model `m` does not exist.","type":"NotFoundError","code":404}',
        status="404 Not Found",
    ),
    "Ollama": refusal("404 Not Found", message="model 'm' not found", type="not_found_error"),
    "Gemini": response(
        b'[{"error":{"code":404,"message":"models/m is not found for API version v1main","status":"NOT_FOUND"}}]',
        status="404 Not Found",
    ),
    "Mistral": response(
        b'{"object":"error","message":"Invalid model: m","type":"invalid_model","param":null,"code":"1500"}',
        status="400 Bad Request",
    ),
    "Azure": refusal("404 Not Found", code="DeploymentNotFound", message="The API deployment does not exist."),
    "Together": refusal("404 Not Found", message="Unable to access model m.", code="model_not_available"),
}


@pytest.mark.parametrize("answer", UNKNOWN.values(), ids=UNKNOWN.keys())
@pytest.mark.parametrize("models", [LIST, refusal("404 Not Found", message="Not Found")], ids=["listed", "no list"])
def test_an_unknown_model_stops(make: Make, models: bytes, answer: bytes) -> None:
    """Where the route for rows says so."""
    with pytest.raises(NotFoundError, match="m"):
        check(make, models, answer)


@pytest.mark.parametrize("models", [LIST, refusal("401 No", message="no"), refusal("404 Not Found", message="none")])
def test_a_wrong_key_stops(make: Make, models: bytes) -> None:
    """Where the route for rows says so."""
    with pytest.raises(AuthenticationError, match="API key"):
        check(make, models, refusal("401 Unauthorized", message="Incorrect API key provided"))


def test_a_listed_model_costs_no_token(make: Make) -> None:
    """Its name in the list is enough."""
    assert check(make, response(b'{"data": [{"id": "m"}]}')) == ["GET /v1/models HTTP/1.1"]


def test_the_query_is_part_of_the_check(make: Make) -> None:
    """A server may want its key or its version there."""
    lines = check(make, LIST, FINE, query={"api-version": "1"})
    assert [line.split()[1] for line in lines] == [
        "/v1/models?api-version=1",
        "/v1/chat/completions?api-version=1",
    ]


def test_the_check_can_be_left_out(make: Make) -> None:
    """Nothing is sent then."""
    assert check(make, LIST, check_server=False) == []


def test_a_server_that_is_not_there_stops(make: Make) -> None:
    """At once, with a hint."""

    async def scenario() -> None:
        client = make("http://127.0.0.1:9/v1")
        try:
            await client.check("m")
        finally:
            await client.aclose()

    with pytest.raises(ConnectionFailedError, match="Is the server up"):
        asyncio.run(scenario())


def test_a_key_in_a_header_of_its_own_is_the_only_one(make: Make) -> None:
    """The check sends what rows will send."""

    async def scenario() -> list[str]:
        async with RawServer([LIST], [FINE]) as server:
            client = make(server.base_url, api_key="secret", api_key_header="api-key")
            try:
                await client.check("m")
            finally:
                await client.aclose()
            return [head.lower() for head in server.heads]

    heads = asyncio.run(scenario())
    assert len(heads) == 2
    assert all("api-key: secret" in head and "authorization" not in head for head in heads)


@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found"])
def test_a_server_that_repeats_the_key_does_not_get_it_into_the_message(make: Make, status: str) -> None:
    """Nor the value of a query parameter, under any header."""
    echo = "model m not found; you sent Bearer sk-canary-1 and key=query-canary-2"
    answer = refusal(status, message=echo, code="model_not_found")
    settings = {"api_key": "sk-canary-1", "query": {"key": "query-canary-2"}}
    with pytest.raises((AuthenticationError, NotFoundError)) as caught:
        check(make, refusal("404 Not Found", message=echo), answer, **settings)
    told = "".join(traceback.format_exception(caught.value))
    assert "you sent" in str(caught.value)
    assert "canary" not in told
