"""The fast client: addresses, keys, several servers, the check before the run."""

from __future__ import annotations

import asyncio
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest

from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.client.llm_client import ConversationFormatter
from nemo_llm_stage.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionFailedError,
    FatalError,
    InvalidResponseError,
    NotFoundError,
    RequestError,
)
from nemo_llm_stage.testing import Fault, SimulatedServer

from .conftest import MESSAGES, RawServer, answer_bytes, response

KEY = "sk-very-secret-0123456789"


async def complete(client: AsyncHTTPClient, num: int = 1, **request: Any) -> list[Any]:
    """The Completion or error of each of `num` requests sent one after another."""
    ends: list[Any] = []
    for _ in range(num):
        try:
            ends.append(await client.complete(messages=MESSAGES, model="sim", **request))
        except RequestError as error:
            ends.append(error)
    await client.aclose()
    return ends


def test_the_key_reaches_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Literally, by variable and by file."""
    monkeypatch.setenv("TEST_KEY", KEY)
    (tmp_path / "key").write_text(f"{KEY}\n")
    with SimulatedServer(api_key=KEY) as server:
        for source in ({"api_key": KEY}, {"api_key_env": "TEST_KEY"}, {"api_key_file": tmp_path / "key"}):
            client = pickle.loads(pickle.dumps(AsyncHTTPClient(server.base_url, **source)))
            [completion] = asyncio.run(complete(client))
            assert completion.texts


def test_what_is_pickled_holds_the_keys_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key given by name stays on the machine that has it, also after setup."""
    monkeypatch.setenv("TEST_KEY", KEY)
    client = AsyncHTTPClient("http://localhost", api_key_env="TEST_KEY")
    client.setup()
    pickled = pickle.dumps(client)
    assert b"TEST_KEY" in pickled
    assert KEY.encode() not in pickled


def test_the_key_shows_nowhere() -> None:
    """Not in repr or str, and not in the error of a server that repeats it."""

    async def scenario() -> list[Any]:
        async with RawServer([response(b"wrong key: " + KEY.encode(), status="401 No")]) as server:
            client = AsyncHTTPClient(server.base_url, api_key=KEY, headers={"X-Team": "another-secret"})
            assert KEY not in f"{client!r} {client} {vars(client)}"
            assert "another-secret" not in f"{client!r} {client}"
            return await complete(client)

    [error] = asyncio.run(scenario())
    assert "wrong key: ***" in str(error)
    assert KEY not in repr(error)


BAD_KEYS = [
    ({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
    ({"api_key_file": "/no/such/key"}, "/no/such/key"),
    ({"api_key": " "}, "empty"),
    ({"api_key": "a\nb"}, "cannot stand in an HTTP header"),
]


@pytest.mark.parametrize(("source", "words"), BAD_KEYS)
def test_a_missing_key_is_named(source: dict[str, str], words: str) -> None:
    """On the worker, in setup or with the first request, as a mistake of the settings."""
    client = AsyncHTTPClient("http://localhost:1", **source)
    with pytest.raises(ConfigError, match=words):
        client.setup()
    with pytest.raises(ConfigError, match=words):
        asyncio.run(client.complete(messages=MESSAGES, model="m"))


def test_two_keys_are_one_too_many() -> None:
    """Which one was meant cannot be known."""
    with pytest.raises(ConfigError, match="one of api_key"):
        AsyncHTTPClient("http://localhost", api_key="a", api_key_env="B")


def test_an_open_road_is_warned_of() -> None:
    """A key over http:// is fine on a private network and told of elsewhere."""
    with pytest.warns(UserWarning, match="unencrypted to http://llm.example.com"):
        AsyncHTTPClient("http://llm.example.com", api_key=KEY).setup()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for url in (
            "https://llm.example.com",
            "http://10.1.2.3:8000",
            "http://vllm:8000",
            "http://a.svc.cluster.local",
        ):
            AsyncHTTPClient(url, api_key=KEY).setup()


@pytest.mark.parametrize("name", ["timeout", "connect_timeout", "read_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_timeouts_are_checked(name: str, value: float) -> None:
    """A timeout that never comes or has passed already is a mistake."""
    with pytest.raises(ConfigError, match=name):
        AsyncHTTPClient("http://localhost", **{name: value})


def test_headers_reach_the_server() -> None:
    """The client's and the request's, the latter first."""
    with SimulatedServer() as server:
        client = AsyncHTTPClient(server.base_url, headers={"X-Team": "a", "X-Job": "b"})
        extra = {"extra_kwargs": {"extra_headers": {"x-job": "c"}}}
        asyncio.run(complete(client, generation_config=extra))
        headers = server.requests[0].headers
    assert (headers["x-team"], headers["x-job"], headers["content-type"]) == ("a", "c", "application/json")


def test_a_formatter_asks_for_a_text_completion() -> None:
    """A base model gets the formatted text."""

    class Plain(ConversationFormatter):
        def format_conversation(self, conv: list[dict[str, Any]]) -> str:
            return f"Q: {conv[0]['content']} A:"

    with SimulatedServer() as server:
        asyncio.run(complete(AsyncHTTPClient(server.base_url), conversation_formatter=Plain()))
        [request] = server.requests
    assert (request.path, request.body["prompt"]) == ("/v1/completions", f"Q: {MESSAGES[0]['content']} A:")


def test_several_servers_are_asked_in_turn() -> None:
    """Each gets its share, and the Completion tells which one answered."""
    with SimulatedServer() as first, SimulatedServer() as second:
        completions = asyncio.run(complete(AsyncHTTPClient([first.base_url, second.base_url]), 6))
        assert (first.stats.num_requests, second.stats.num_requests) == (3, 3)
    assert [completion.endpoint for completion in completions[:2]] == [first.base_url, second.base_url]


def test_a_retry_goes_to_the_next_server() -> None:
    """Rows that a broken server fails are answered by the other, at the second attempt, side by side too."""

    async def scenario() -> list[Any]:
        client = AsyncHTTPClient([broken.base_url, sound.base_url], base_delay=0, max_retries=1)
        asked = [client.complete(messages=MESSAGES, model="sim") for _ in range(20)]
        try:
            return await asyncio.gather(*asked)
        finally:
            await client.aclose()

    with SimulatedServer(faults=[Fault(500)]) as broken, SimulatedServer() as sound:
        completions = asyncio.run(scenario())
        assert broken.stats.num_requests == 10
    assert {completion.endpoint for completion in completions} == {sound.base_url}


def test_a_server_that_ignores_stream_is_understood() -> None:
    """A whole answer to a request for a stream is an answer."""

    async def scenario() -> list[Any]:
        async with RawServer([response(answer_bytes("fine"), "content-type: application/json")]) as server:
            return await complete(AsyncHTTPClient(server.base_url), generation_config={"stream": True})

    [completion] = asyncio.run(scenario())
    assert completion.texts == ("fine",)


def test_redirects_are_not_followed() -> None:
    """They are told, without the query that may hold a token."""

    async def scenario() -> list[Any]:
        redirect = response(b"", "location: https://elsewhere/v1?token=x", status="307 Temporary Redirect")
        async with RawServer([redirect]) as server:
            return await complete(AsyncHTTPClient(server.base_url))

    [error] = asyncio.run(scenario())
    assert type(error) is FatalError
    assert "https://elsewhere/v1;" in str(error)


STATUSES = ["201 Created", "204 No Content", "206 Partial Content", "304 Not Modified", "299 Odd"]


@pytest.mark.parametrize("status", STATUSES)
def test_other_statuses_are_no_redirects(status: str) -> None:
    """They say that there is no answer; the next time there may be one."""

    async def scenario() -> list[Any]:
        async with RawServer([response(b"", status=status)]) as server:
            return await complete(AsyncHTTPClient(server.base_url, max_retries=0))

    [error] = asyncio.run(scenario())
    assert type(error) is InvalidResponseError
    words = "an unknown status" if status == "299 Odd" else status[4:].lower()
    assert f"HTTP {status[:3]}: {words}" in str(error)


CHUNK = b'{"choices": [{"index": 0, "delta": {"content": "fine"}, "finish_reason": "stop"}]}'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: " + CHUNK + b"\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_stream_that_is_done_is_not_waited_for(is_stream: bool) -> None:
    """[DONE] on a connection that stays open is the end, also of a stream that nobody asked for."""

    async def scenario() -> list[Any]:
        async with RawServer([STREAM]) as server:
            client = AsyncHTTPClient(server.base_url, timeout=30, max_retries=0)
            async with asyncio.timeout(10):
                return await complete(client, 2, generation_config={"stream": is_stream})

    assert [completion.texts for completion in asyncio.run(scenario())] == [("fine",), ("fine",)]


def test_a_whole_stream_keeps_its_connection() -> None:
    """The end of the chunks may come a little after [DONE]."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    events = [b"data: " + CHUNK.replace(b"fine", b"fine %d" % row) + b"\n\ndata: [DONE]\n\n" for row in range(3)]

    async def scenario() -> tuple[int, list[Any]]:
        script = [[head, b"%x\r\n%b\r\n" % (len(event), event), b"0\r\n\r\n"] for event in events]
        async with RawServer(*script) as server:
            client = AsyncHTTPClient(server.base_url, max_retries=0)
            completions = await complete(client, 3, generation_config={"stream": True})
            return server.num_connections, completions

    num_connections, completions = asyncio.run(scenario())
    assert [completion.texts for completion in completions] == [("fine 0",), ("fine 1",), ("fine 2",)]
    assert num_connections == 1


def test_answers_have_a_longest() -> None:
    """An endless answer does not fill the memory."""

    async def scenario() -> list[Any]:
        async with RawServer([response(answer_bytes("x" * 1_000_000))]) as server:
            return await complete(AsyncHTTPClient(server.base_url, max_response_bytes=100_000, max_retries=0))

    [error] = asyncio.run(scenario())
    assert type(error) is InvalidResponseError


@pytest.mark.parametrize("asked", [{"logprobs": True, "top_logprobs": 20}, {}], ids=["asked", "unasked"])
def test_log_probabilities_that_were_asked_for_may_be_many(asked: dict[str, Any]) -> None:
    """6,000 tokens with 20 alternatives each have more values than any other answer."""
    tops = [{"token": "a", "logprob": -1.0, "bytes": [97]}] * 20
    logprobs = {"content": [{"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": tops}] * 6000}

    async def scenario() -> list[Any]:
        async with RawServer([response(answer_bytes(logprobs=logprobs))]) as server:
            client = AsyncHTTPClient(server.base_url, max_retries=0)
            return await complete(client, generation_config={"extra_kwargs": asked})

    [end] = asyncio.run(scenario())
    if asked:
        assert end.logprobs == (logprobs,)
    else:
        assert type(end) is InvalidResponseError


def check(base_url: str | list[str], model: str = "sim", **settings: Any) -> None:
    async def scenario() -> None:
        client = AsyncHTTPClient(base_url, connect_timeout=2, **settings)
        try:
            await client.check(model)
        finally:
            await client.aclose()

    asyncio.run(scenario())


def test_check_passes_what_works() -> None:
    """A listed model costs no token; an alias that is not listed costs one."""
    with SimulatedServer() as server:
        check(server.base_url)
        assert server.stats.num_requests == 0
    with SimulatedServer(accept_any_model=True) as server:
        check(server.base_url, "alias")
        assert [request.body["max_tokens"] for request in server.requests] == [1]


def test_check_names_the_models_there_are() -> None:
    """The nearest first, with the question whether it was meant."""
    with SimulatedServer(model=("other", "Qwen3-8B")) as server, pytest.raises(NotFoundError) as caught:
        check(server.base_url, "qwen3-8b")
    assert "it has 'Qwen3-8B', 'other'. Did you mean 'Qwen3-8B'?" in str(caught.value)


def test_check_of_a_key() -> None:
    """A wrong key is found before the first row."""
    with SimulatedServer(api_key=KEY) as server, pytest.raises(AuthenticationError, match="API key"):
        check(server.base_url, api_key="wrong-key")


def test_check_of_an_address() -> None:
    """No server is told with the address and what to look at."""
    with SimulatedServer() as server:
        pass
    with pytest.raises(ConnectionFailedError, match=f"{server.base_url}/models.*base_url"):
        check(server.base_url)


def test_check_bears_one_server_down(caplog: pytest.LogCaptureFixture) -> None:
    """One of several being down is no reason to stop; all of them are."""
    with SimulatedServer() as up:
        with SimulatedServer() as down:
            pass
        check([up.base_url, down.base_url])
        assert down.base_url in caplog.text
    with pytest.raises(ConnectionFailedError):
        check([up.base_url, down.base_url])


@pytest.mark.parametrize("status", ["404 Not Found", "405 Method Not Allowed", "500 Oops", "200 OK"])
def test_check_passes_servers_without_a_list(status: str) -> None:
    """Many servers have no /models, or answer it in their own way."""

    async def scenario() -> None:
        async with RawServer([response(b"{}", status=status)]) as server:
            client = AsyncHTTPClient(server.base_url)
            await client.check("m")
            await client.aclose()

    asyncio.run(scenario())
