"""Whatever client a user brings."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import pytest

from nemo_llm_stage.client.adapt import as_async_client
from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.client.llm_client import AsyncLLMClient, LLMClient
from nemo_llm_stage.errors import ClientError, ConfigError, RateLimitError
from nemo_llm_stage.testing import ScriptedClient

MESSAGES = [{"role": "user", "content": "hi"}]


class Blocking(LLMClient):
    """A synchronous client that waits until so many calls have met."""

    max_concurrent_requests = 3

    def __init__(self, num_meeting: int = 1) -> None:
        self.num_meeting = num_meeting
        self.was_set_up = False

    def setup(self) -> None:
        self.was_set_up = True
        self.barrier = threading.Barrier(self.num_meeting, timeout=5)

    def query_model(self, **request: Any) -> list[str]:
        self.barrier.wait()
        return [request["model"]]


class Stranger:
    """No relation of ours, with the same two methods, the second asynchronous."""

    def setup(self) -> None:
        self.in_flight = self.max_in_flight = 0

    async def query_model(self, **request: Any) -> list[str]:
        self.in_flight += 1
        self.max_in_flight = max(self.in_flight, self.max_in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        return [request["model"]]


class Failing(Stranger):
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def query_model(self, **request: Any) -> list[str]:
        raise self.error


def ask(client: AsyncLLMClient, num: int = 1) -> list[Any]:
    async def scenario() -> list[Any]:
        client.setup()
        asked = [client.complete(messages=MESSAGES, model="m") for _ in range(num)]
        try:
            return await asyncio.gather(*asked, return_exceptions=True)
        finally:
            await client.aclose()

    return asyncio.run(scenario())


def test_ours_are_taken_as_they_are() -> None:
    """A subclass that keeps the retries and the limit needs no wrapping."""
    for client in (AsyncHTTPClient("http://localhost"), ScriptedClient()):
        assert as_async_client(client) is client


def test_synchronous_clients_run_side_by_side() -> None:
    """As many calls as it allows are in threads at once."""
    client = as_async_client(Blocking(num_meeting=3))
    assert [completion.texts for completion in ask(client, 9)] == [("m",)] * 9


def test_a_synchronous_client_does_not_block_the_loop() -> None:
    """Others go on while it waits; the limit tells that a call is in flight."""

    async def scenario() -> tuple[int, int]:
        blocking = Blocking(num_meeting=2)
        client = as_async_client(blocking)
        client.setup()
        asked = [asyncio.ensure_future(client.complete(messages=MESSAGES, model="m")) for _ in range(5)]
        await asyncio.sleep(0)
        seen = client.limit.in_flight, client.limit.num_waiting
        blocking.barrier.abort()
        await asyncio.wait(asked)
        await client.aclose()
        return seen

    assert asyncio.run(scenario()) == (3, 2)


def test_strangers_are_held_to_a_limit() -> None:
    """A client without a word on concurrency gets 8 at once."""
    stranger = Stranger()
    client = as_async_client(stranger)
    assert len(ask(client, 30)) == 30
    assert stranger.max_in_flight == client.max_concurrent_requests == 8


def test_a_wrapped_client_can_be_pickled() -> None:
    """Before and after it was used."""
    client = as_async_client(Stranger())
    for _ in range(2):
        client = pickle.loads(pickle.dumps(client))
        assert ask(client)[0].texts == ("m",)


def test_errors_of_strangers_are_typed() -> None:
    """By what they are, else by what they say, and else as the client's own."""
    assert type(ask(as_async_client(Failing(RuntimeError("429 Rate limit exceeded"))))[0]) is RateLimitError
    assert type(ask(as_async_client(Failing(RuntimeError("failed to generate"))))[0]) is ClientError


def test_retries_of_a_stranger_are_its_own() -> None:
    """A wrapped client is asked once: it may retry inside."""
    [error] = ask(as_async_client(Failing(ConnectionError("reset"))))
    assert error.attempts == 1


def test_an_override_of_query_model_is_honoured() -> None:
    """A subclass with its own way to the answer is asked by it, under a limit that tells the truth."""

    class Own(ScriptedClient):
        async def query_model(self, **request: Any) -> list[str]:
            assert wrapped.limit.in_flight == 1
            return ["mine", *await super().query_model(**request)]

    wrapped = as_async_client(Own(["theirs"]))
    assert ask(wrapped)[0].texts == ("mine", "theirs")


@pytest.mark.parametrize("client", [None, "http://localhost", object(), Stranger, AsyncHTTPClient])
def test_what_is_no_client_is_refused(client: Any) -> None:
    """With what it would need."""
    with pytest.raises(ConfigError):
        as_async_client(client)
