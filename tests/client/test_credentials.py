"""What a client sends beside the request: keys under any header, named values, query parameters, certificates."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest

from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.errors import ConfigError, RequestError
from nemo_llm_stage.testing import SimulatedServer

from .conftest import MESSAGES, RawServer, answer_bytes, response

KEY = "sk-very-secret-0123456789"
TEAM = "team-secret-9876543210"


def heads_of(num: int = 1, **settings: Any) -> list[str]:
    """The heads of the requests that a client with these settings sends."""

    async def scenario() -> list[str]:
        async with RawServer([response(answer_bytes("fine"))]) as server:
            client = AsyncHTTPClient(server.base_url, **settings)
            for _ in range(num):
                await client.complete(messages=MESSAGES, model="m")
            await client.aclose()
            return server.heads

    return asyncio.run(scenario())


def test_a_key_goes_under_the_header_that_is_named() -> None:
    """Alone; only `Authorization` holds a scheme before it."""
    [azure] = heads_of(api_key=KEY, api_key_header="api-key")
    assert f"\r\napi-key: {KEY}\r\n" in azure
    assert "authorization" not in azure.lower()
    assert f"\r\nauthorization: Bearer {KEY}\r\n" in heads_of(api_key=KEY, api_key_header="Authorization")[0]


def test_headers_and_query_may_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By variable and by file; read where the requests are sent from."""
    monkeypatch.setenv("TEST_TEAM", TEAM)
    (tmp_path / "token").write_text(f"{KEY}\n")
    settings: dict[str, Any] = {
        "headers": {"X-Team": {"env": "TEST_TEAM"}, "X-Title": "my job"},
        "query": {"api-version": "2024-10-21", "key": {"file": str(tmp_path / "token")}, "a b": "c&d"},
    }
    head = heads_of(**settings)[0]
    assert head.startswith(f"POST /v1/chat/completions?api-version=2024-10-21&key={KEY}&a%20b=c%26d HTTP/1.1\r\n")
    assert f"\r\nx-team: {TEAM}\r\n" in head
    client = AsyncHTTPClient("http://localhost", **settings)
    client.setup()
    pickled = pickle.dumps(client)
    assert TEAM.encode() not in pickled
    assert KEY.encode() not in pickled
    assert f"{client!r} {vars(client)}".count(TEAM) == 0
    assert "'env': 'TEST_TEAM'" in repr(client)
    assert "2024-10-21" in repr(client)


def test_the_requests_own_query_comes_first() -> None:
    """The client's is added to it."""

    async def scenario() -> str:
        async with RawServer([response(answer_bytes("fine"))]) as server:
            client = AsyncHTTPClient(server.base_url, query={"api-version": "1"})
            config = {"extra_kwargs": {"extra_query": {"x": "y"}}}
            await client.complete(messages=MESSAGES, model="m", generation_config=config)
            await client.aclose()
            return server.heads[0]

    assert "/chat/completions?x=y&api-version=1 HTTP" in asyncio.run(scenario())


BAD = [
    ({"api_key_env": "sk-canary-1"}, "api_key_env must name an environment variable"),
    ({"api_key_env": "gsk_canary1"}, r"variable that is named \(api_key_env\) is not set"),
    ({"headers": {"x-team": {"env": "NO_SUCH_VARIABLE"}}}, r"NO_SUCH_VARIABLE \(headers: x-team\)"),
    ({"query": {"key": {"file": "/no/such/file"}}}, r"/no/such/file \(query: key\) cannot be read"),
    ({"headers": {"x-team": {"envv": "X"}}}, "headers: x-team must be a text, {env: NAME} or {file: PATH}"),
    ({"headers": {"x-team": 5}}, "headers: x-team must be a text"),
    ({"api_key_header": "api key"}, "'api key', which is no header's name"),
    ({"key_file": "/x"}, "cert_file, which is missing"),
]


@pytest.mark.parametrize(("settings", "words"), BAD)
def test_wrong_values_are_named(settings: dict[str, Any], words: str) -> None:
    """When the client is made or set up."""
    with pytest.raises(ConfigError, match=words):
        AsyncHTTPClient("http://localhost", **settings).setup()


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """With the first request, as a mistake of the settings."""
    (tmp_path / "cert.pem").write_text("no certificate")
    client = AsyncHTTPClient("https://localhost:1", cert_file=tmp_path / "cert.pem")
    with pytest.raises(ConfigError, match=r"cert\.pem cannot be used"):
        asyncio.run(client.complete(messages=MESSAGES, model="m"))


def test_a_proxys_password_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that is given nor one that is named."""
    url = f"http://user:{KEY}@localhost:1"
    monkeypatch.setenv("TEST_PROXY", url)
    for proxy in (url, {"env": "TEST_PROXY"}):
        client = AsyncHTTPClient("http://llm.invalid", proxy=proxy, max_retries=0)
        with pytest.raises(RequestError) as caught:
            asyncio.run(client.complete(messages=MESSAGES, model="m"))
        assert KEY not in f"{client!r} {vars(client)} {caught.value} {caught.value.__cause__!r}"


@pytest.mark.parametrize("value", [False, None])
def test_stream_options_can_be_left_out(value: Any) -> None:
    """For servers that refuse them; else a stream asks for its usage."""
    with SimulatedServer() as server:

        async def scenario(extra: dict[str, Any]) -> None:
            client = AsyncHTTPClient(server.base_url)
            config = {"stream": True, "extra_kwargs": extra}
            await client.complete(messages=MESSAGES, model="sim", generation_config=config)
            await client.aclose()

        asyncio.run(scenario({"stream_options": value}))
        asyncio.run(scenario({}))
        bodies = [request.body for request in server.requests]
    assert "stream_options" not in bodies[0]
    assert bodies[1]["stream_options"] == {"include_usage": True}
