"""What every client keeps to, whoever wrote it: ours, the SDK's, a user's own."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from nemo_llm_stage.client.adapt import as_async_client
from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.client.llm_client import AsyncLLMClient, GenerationConfig
from nemo_llm_stage.client.openai_client import AsyncOpenAIClient
from nemo_llm_stage.errors import (
    AuthenticationError,
    BadRequestError,
    ConfigError,
    ConnectionDroppedError,
    ConnectionFailedError,
    NotFoundError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
)
from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer

MESSAGES = [{"role": "user", "content": "What is a mole?"}]


def ours(base_url: str, **settings: Any) -> AsyncLLMClient:
    return AsyncHTTPClient(base_url, **settings)


def sdk(base_url: str, **settings: Any) -> AsyncLLMClient:
    return AsyncOpenAIClient(base_url=base_url, api_key="sk-test", **settings)


class OwnImpl(AsyncLLMClient):
    """A user's client that writes one attempt."""

    def __init__(self, base_url: str, timeout: float = 10.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.wire = AsyncHTTPClient(base_url, timeout=timeout, max_retries=0, max_concurrent_requests=1000)

    def setup(self) -> None:
        self.wire.setup()

    async def _query_model_impl(self, **request: Any) -> list[str]:
        assert isinstance(request["generation_config"], GenerationConfig)
        return await self.wire.query_model(**request)

    async def aclose(self) -> None:
        await self.wire.aclose()


class OwnQueryModel(OwnImpl):
    """A user's client that also has its own way around the attempts."""

    async def query_model(self, **request: Any) -> list[str]:
        return await super().query_model(**request)


FACTORIES = {
    "http": ours,
    "openai": sdk,
    "impl": OwnImpl,
    "query_model": lambda *a, **k: as_async_client(OwnQueryModel(*a, **k)),
}
TELLS_ALL = ["http", "openai"]


@pytest.fixture(params=FACTORIES)
def make(request: pytest.FixtureRequest) -> Any:
    return FACTORIES[request.param]


async def ask(client: AsyncLLMClient, *contents: str, **request: Any) -> list[Any]:
    """The Completion or error for each of `contents`, asked all at once."""
    request = {"model": "sim", **request}
    asked = [client.complete(messages=[{"role": "user", "content": content}], **request) for content in contents]
    try:
        return await asyncio.gather(*asked, return_exceptions=True)
    finally:
        await client.aclose()


@pytest.mark.parametrize("config", [None, {"max_tokens": 99}, GenerationConfig(max_tokens=99)], ids=repr)
def test_texts_are_the_servers(make: Any, config: Any) -> None:
    """`query_model` takes its config in three ways and returns a list of texts."""

    async def scenario() -> list[str]:
        client = make(server.base_url)
        texts = await client.query_model(messages=iter(MESSAGES), model="sim", generation_config=config)
        await client.aclose()
        return texts

    with SimulatedServer() as server:
        assert [expected_answer(MESSAGES)] == asyncio.run(scenario())
        assert server.requests[0].body["max_tokens"] == (99 if config else 2048)


@pytest.mark.parametrize("stream", [False, True])
def test_n_choices_come_in_order(make: Any, stream: bool) -> None:
    """N > 1 gives n texts in the server's order, streamed or not."""
    with SimulatedServer() as server:
        [completion] = asyncio.run(ask(make(server.base_url), "hello", generation_config={"n": 3, "stream": stream}))
    turns = [{"role": "user", "content": "hello"}]
    assert tuple(expected_answer(turns, choice=choice) for choice in range(3)) == completion.texts


def test_every_row_gets_its_own_answer(make: Any) -> None:
    """Many at once do not mix."""
    contents = [f"row {number}" for number in range(24)]
    with SimulatedServer(service_time_s=0.01) as server:
        completions = asyncio.run(ask(make(server.base_url, max_concurrent_requests=12), *contents))
    assert [(expected_answer([{"role": "user", "content": text}]),) for text in contents] == [
        completion.texts for completion in completions
    ]


def test_limit_holds_at_the_server(make: Any) -> None:
    """No more attempts are in flight than allowed, and as many as allowed."""
    with SimulatedServer(service_time_s=0.02) as server:
        asyncio.run(ask(make(server.base_url, max_concurrent_requests=7), *map(str, range(21))))
        assert server.stats.max_in_flight == 7


def test_permits_come_back_after_every_end(make: Any) -> None:
    """Answers, errors and cancellations all return their permit."""

    async def scenario() -> None:
        client = make(server.base_url, max_concurrent_requests=2, max_retries=0)
        hanging = asyncio.ensure_future(client.complete(messages=[{"role": "user", "content": "hang"}], model="sim"))
        waiting = asyncio.ensure_future(client.complete(messages=MESSAGES, model="sim"))
        assert (await waiting).texts
        hanging.cancel()
        await asyncio.wait([hanging])
        assert (client.limit.in_flight, client.limit.num_waiting) == (0, 0)
        await ask(client, "refuse", "refuse", "refuse")
        assert (client.limit.in_flight, client.limit.num_waiting) == (0, 0)

    with SimulatedServer(faults=[Fault("hang", contains="hang"), Fault(400, contains="refuse")]) as server:
        asyncio.run(scenario())


def test_a_failure_that_passes_is_asked_again(make: Any) -> None:
    """429, 5xx and dropped connections are retried, as often as allowed."""
    faults = [
        Fault(429, contains="a", attempts=2),
        Fault(503, contains="b", attempts=2),
        Fault("drop", contains="c", attempts=2),
    ]
    with SimulatedServer(faults=faults) as server:
        completions = asyncio.run(ask(make(server.base_url, max_retries=2, base_delay=0), "a", "b", "c"))
        assert server.stats.num_requests == 9
    assert all(completion.texts for completion in completions)


@pytest.mark.parametrize("name", ["http", "openai", "impl"])
def test_attempts_are_counted(name: str) -> None:
    """The Completion, or the error, tells how many sends it took."""
    with SimulatedServer(faults=[Fault(500, contains="x", attempts=1), Fault(500, contains="y")]) as server:
        client = FACTORIES[name](server.base_url, max_retries=1, base_delay=0)
        completion, error = asyncio.run(ask(client, "x", "y"))
    assert (completion.attempts, error.attempts) == (2, 2)


ERRORS = [
    (400, BadRequestError, 1),
    (401, AuthenticationError, 1),
    (403, AuthenticationError, 1),
    (404, NotFoundError, 1),
    (408, ServerError, 2),
    (409, ServerError, 2),
    (413, BadRequestError, 1),
    (422, BadRequestError, 1),
    (425, ServerError, 2),
    (429, RateLimitError, 2),
    (500, ServerError, 2),
    (502, ServerError, 2),
    (503, ServerError, 2),
    (504, ServerError, 2),
    ("drop", ConnectionDroppedError, 2),
    ("reset", ConnectionDroppedError, 2),
    ("half_body", ConnectionDroppedError, 2),
]


@pytest.mark.parametrize(("fault", "error_type", "num_sends"), ERRORS)
def test_errors_are_typed_and_retried_by_kind(make: Any, fault: Any, error_type: type, num_sends: int) -> None:
    """Each failure of a server becomes its type; only what may pass is sent again."""
    with SimulatedServer(faults=[Fault(fault)]) as server:
        [error] = asyncio.run(ask(make(server.base_url, max_retries=1, base_delay=0), "x"))
        assert (error_type, num_sends) == (type(error), server.stats.num_requests)


def test_silence_ends_at_the_timeout(make: Any) -> None:
    """A request that is accepted and never answered ends, typed."""
    with SimulatedServer(faults=[Fault("hang")]) as server:
        [error] = asyncio.run(ask(make(server.base_url, timeout=0.2, max_retries=0), "x"))
    assert RequestTimeoutError is type(error)


def test_no_server_is_a_failed_connection(make: Any) -> None:
    """Nothing listening is told apart from a connection that broke."""
    with SimulatedServer() as server:
        pass
    [error] = asyncio.run(ask(make(server.base_url, max_retries=0), "x"))
    assert ConnectionFailedError is type(error)


def test_sleeping_retry_holds_no_permit(make: Any) -> None:
    """While a refused row waits for its Retry-After, the one permit serves the others."""
    if make is FACTORIES["query_model"]:
        pytest.skip("its waiting is inside its own query_model")
    contents = ["slow", *map(str, range(5))]
    with SimulatedServer(faults=[Fault(429, contains="slow", attempts=1, retry_after_s=0.3)]) as server:
        asyncio.run(ask(make(server.base_url, max_concurrent_requests=1, base_delay=0), *contents))
        assert [*contents, "slow"] == [request.body["messages"][0]["content"] for request in server.requests]


def test_retry_after_is_obeyed(make: Any) -> None:
    """The second send comes no earlier than the server asked."""
    with SimulatedServer(faults=[Fault(429, attempts=1, retry_after_s=0.2)]) as server:
        asyncio.run(ask(make(server.base_url, base_delay=0), "x"))
        first, second = server.requests
        assert second.arrived_monotonic_s - first.arrived_monotonic_s >= 0.2


def test_pickled_before_and_after_setup(make: Any) -> None:
    """A client goes to a worker at any time of its life."""

    async def scenario(client: AsyncLLMClient) -> tuple[str, ...]:
        return (await ask(client, "x"))[0].texts

    with SimulatedServer() as server:
        client = make(server.base_url)
        fresh = pickle.dumps(client)
        client.setup()
        texts = asyncio.run(scenario(client))
        used = pickle.dumps(client)
        for pickled in (fresh, used):
            assert texts == asyncio.run(scenario(pickle.loads(pickled)))


def test_several_loops_one_after_another(make: Any) -> None:
    """A client that was used, and not closed, on one loop works on the next; nothing is left open."""

    async def scenario() -> list[str]:
        return await client.query_model(messages=MESSAGES, model="sim")

    with SimulatedServer() as server:
        client = make(server.base_url)
        answers = [asyncio.run(scenario()) for _ in range(3)]
        assert [[expected_answer(MESSAGES)]] * 3 == answers


def test_connections_are_far_fewer_than_requests(make: Any) -> None:
    """Connections are kept open and used again."""
    with SimulatedServer() as server:
        asyncio.run(ask(make(server.base_url, max_concurrent_requests=4), *map(str, range(40))))
        assert server.stats.num_connections <= 8


def test_unknown_config_key_is_named(make: Any) -> None:
    """A mistyped parameter is refused with the right one."""
    client = make("http://localhost:1")
    with pytest.raises(ConfigError, match="did you mean 'max_tokens'"):
        asyncio.run(client.query_model(messages=MESSAGES, model="sim", generation_config={"max_token": 1}))


@pytest.mark.parametrize("name", TELLS_ALL)
@pytest.mark.parametrize("stream", [False, True])
def test_completion_tells_all(name: str, stream: bool) -> None:
    """Texts, finish reasons, reasoning, usage, model, endpoint and latency all arrive, streamed or not."""
    with SimulatedServer(reasoning_field="reasoning_content", scheduler="batching", speedup=1000) as server:
        client = FACTORIES[name](server.base_url)
        config = {"stream": stream, "max_tokens": 1000}
        asyncio.run(ask(client, "long " * 100, generation_config=config))
        [completion] = asyncio.run(ask(client, "long " * 100, generation_config=config))
        assert server.base_url == completion.endpoint
    assert (completion.finish_reasons[0], completion.model, completion.attempts) == ("stop", "sim", 1)
    assert completion.reasoning[0]
    assert completion.latency_s > 0
    assert completion.usage.input_tokens > completion.usage.cached_tokens > 0
    assert completion.usage.output_tokens > 0


@pytest.mark.parametrize("name", TELLS_ALL)
def test_logprobs_come_as_they_are(name: str) -> None:
    """Asked for, the server's logprobs are kept for each choice."""
    with SimulatedServer() as server:
        config = {"extra_kwargs": {"logprobs": True}, "n": 2}
        [completion] = asyncio.run(ask(FACTORIES[name](server.base_url), "x", generation_config=config))
    assert len(completion.logprobs) == 2
    assert all(choice["content"] for choice in completion.logprobs)


@pytest.mark.parametrize("name", TELLS_ALL)
def test_cancelling_closes_the_connection(name: str, raw_server: Any) -> None:
    """The server learns at once that nobody waits for its answer any more."""

    async def scenario() -> None:
        async with raw_server([]) as server:
            client = FACTORIES[name](server.base_url)
            task = asyncio.ensure_future(client.query_model(messages=MESSAGES, model="sim"))
            await server.asked.wait()
            task.cancel()
            await asyncio.wait([task])
            await asyncio.wait_for(server.all_closed.wait(), 5)

    asyncio.run(scenario())
