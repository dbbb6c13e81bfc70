"""No row gets the answer of another, whatever lies on a connection."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator

import pytest

from nemo_llm_stage import AsyncHTTPClient
from nemo_llm_stage.errors import RequestError
from tests.client.conftest import response
from tests.client.threaded_server import ThreadedServer

NUMBERS = itertools.count()


def answer_to(body: bytes, status: str = "200 OK", **fields: object) -> bytes:
    """An answer that repeats the request's text, as a server that says each request's id would."""
    message = {"role": "assistant", "content": json.loads(body)["messages"][0]["content"]}
    answer = {"id": f"chatcmpl-{next(NUMBERS)}", "choices": [{"message": message, "finish_reason": "stop"}]}
    return response(json.dumps({**answer, **fields}).encode(), "content-type: application/json", status=status)


def at_once(body: bytes) -> Iterator[bytes]:
    yield answer_to(body) * 2


def in_a_row(body: bytes) -> Iterator[bytes]:
    answer = answer_to(body)
    yield answer
    yield answer


def delayed(body: bytes) -> Iterator[bytes]:
    answer = answer_to(body)
    yield answer
    time.sleep(0.002)
    yield answer


def cut(body: bytes) -> Iterator[bytes]:
    answer = answer_to(body)
    yield answer + answer[:100]
    time.sleep(0.001)
    yield answer[100:]


def some(body: bytes) -> Iterator[bytes]:
    answer = answer_to(body)
    yield answer
    if next(NUMBERS) % 7 == 0:
        time.sleep(0.001)
        yield answer


async def ask_all(client: AsyncHTTPClient, num: int) -> list[str]:
    async def ask(row: int) -> str:
        completion = await client.complete(messages=[{"role": "user", "content": f"row {row}"}], model="m")
        return completion.texts[0]

    try:
        return list(await asyncio.gather(*(ask(row) for row in range(num))))
    finally:
        await client.aclose()


@pytest.mark.parametrize("answers", [at_once, in_a_row, delayed, cut, some])
def test_an_answer_that_is_sent_twice_goes_to_no_other_row(
    answers: Callable[[bytes], Iterator[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    """1,000 rows at a server or proxy that repeats itself: counted, warned of, and each connection used once."""
    with ThreadedServer(answers) as server:
        client = AsyncHTTPClient(server.base_url, max_concurrent_requests=16, base_delay=0.01)
        texts = asyncio.run(ask_all(client, 1000))
        statistics = client.statistics()
    assert texts == [f"row {row}" for row in range(1000)]
    assert statistics.single_use_servers == (server.base_url.removesuffix("/v1"),)
    assert statistics.num_connects > 900
    assert caplog.text.count("no request had asked for") == 1


def test_a_server_whose_answers_are_all_alike_keeps_its_connections() -> None:
    """Answers without an id look like copies of each other; one row is asked again to find out, and no other."""
    alike = response(b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}')
    num_asked = itertools.count()

    def answers(body: bytes) -> Iterator[bytes]:
        next(num_asked)
        yield alike

    with ThreadedServer(answers) as server:
        client = AsyncHTTPClient(server.base_url, max_concurrent_requests=1, max_retries=0)
        assert asyncio.run(ask_all(client, 50)) == ["yes"] * 50
        assert client.statistics().single_use_servers == ()
    assert (next(num_asked), server.num_connections) == (51, 2)


def test_an_error_that_is_sent_twice_fails_one_row() -> None:
    """A copy of a refusal is not read as the next row's."""

    def answers(body: bytes) -> Iterator[bytes]:
        is_bad = json.loads(body)["messages"][0]["content"] == "row 3"
        answer = answer_to(body, error="bad", status="400 Bad Request") if is_bad else answer_to(body)
        yield answer
        if is_bad:
            time.sleep(0.001)
            yield answer

    async def scenario(client: AsyncHTTPClient) -> list[str]:
        async def ask(row: int) -> str:
            try:
                return (await client.complete(messages=[{"role": "user", "content": f"row {row}"}], model="m")).texts[0]
            except RequestError as error:
                return type(error).__name__

        ends = [await ask(row) for row in range(10)]
        await client.aclose()
        return ends

    with ThreadedServer(answers) as server:
        ends = asyncio.run(scenario(AsyncHTTPClient(server.base_url, max_retries=0)))
    assert ends == [f"row {row}" if row != 3 else "BadRequestError" for row in range(10)]


def test_the_farewell_of_a_proxy_is_no_unasked_answer() -> None:
    """Some say 408 on an idle connection before they close it."""

    def answers(body: bytes) -> Iterator[bytes]:
        yield answer_to(body)
        time.sleep(0.02)
        yield b"HTTP/1.1 408 Request Time-out\r\nconnection: close\r\n\r\n"

    async def scenario(client: AsyncHTTPClient) -> None:
        await client.complete(messages=[{"role": "user", "content": "row"}], model="m")
        while not client.statistics().drops:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.001)
        await client.aclose()

    with ThreadedServer(answers) as server:
        client = AsyncHTTPClient(server.base_url)
        asyncio.run(scenario(client))
    assert client.statistics().drops == {"closed by the server": 1}
