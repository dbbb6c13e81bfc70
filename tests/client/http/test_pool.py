"""No row gets the answer of another, whatever lies on a connection."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from nemo_llm_stage import AsyncHTTPClient
from nemo_llm_stage.cli import main
from nemo_llm_stage.client.http.pool import NUM_ALIKE
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


ALIKE = response(b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}')
NO_ANSWER = response(b'{"choices": [')


def test_a_server_whose_answers_are_all_alike_keeps_its_connections() -> None:
    """Answers without an id look like copies of each other; three rows are asked again to find out, and no other."""
    num_asked = itertools.count()

    def answers(body: bytes) -> Iterator[bytes]:
        next(num_asked)
        yield ALIKE

    with ThreadedServer(answers) as server:
        client = AsyncHTTPClient(server.base_url, max_concurrent_requests=1, max_retries=0)
        assert asyncio.run(ask_all(client, 50)) == ["yes"] * 50
        assert client.statistics().single_use_servers == ()
    assert (next(num_asked), server.num_connections) == (53, NUM_ALIKE)


def test_answers_that_differ_after_many_alike_go_to_their_own_rows() -> None:
    """Where all were alike, a copy may have put a connection out of step: what differs on it is asked for again."""

    def answers(body: bytes) -> Iterator[bytes]:
        row = int(json.loads(body)["messages"][0]["content"].removeprefix("row "))
        answer = answer_to(body) if row >= 40 else ALIKE
        yield answer
        if row == 39:
            time.sleep(0.001)
            yield answer

    assert own_or_failed(answers, 80)[41:] == [f"row {row}" for row in range(41, 80)]


def test_what_is_no_answer_does_not_end_the_comparison() -> None:
    """A body cut short is the same for many rows; a copy of an answer is known all the same."""

    def answers(body: bytes) -> Iterator[bytes]:
        row = int(json.loads(body)["messages"][0]["content"].removeprefix("row "))
        if row < 60:
            yield NO_ANSWER
            return
        yield from delayed(body)

    assert own_or_failed(answers, 120) == [*["InvalidResponseError"] * 60, *(f"row {row}" for row in range(60, 120))]


def test_an_answer_that_is_sent_twice_to_a_row_asked_again_goes_to_no_other() -> None:
    """A server that says the same whenever it is asked the same: the row's second send gets the same bytes."""
    asked: dict[bytes, int] = {}

    def answers(body: bytes) -> Iterator[bytes]:
        asked[body] = asked.get(body, 0) + 1
        answer = response(
            json.dumps({"choices": f"no answer to {json.loads(body)['messages'][0]['content']}"}).encode()
        )
        yield answer
        time.sleep(0.001)
        yield answer

    texts = own_or_failed(answers, 60, max_retries=2, base_delay=0.0, shows_text=True)
    assert [text.count(f"row {row}") for row, text in enumerate(texts)] == [1] * 60


REFUSALS = {
    "503": response(b"", status="503 Service Unavailable"),
    "empty": response(b""),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "no answer": NO_ANSWER,
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_what_is_no_answer_and_sent_twice_puts_no_connection_out_of_step(refusal: bytes) -> None:
    """The row after a copy loses its own answer with the connection, so that it cannot go to the next row."""

    def answers(body: bytes) -> Iterator[bytes]:
        row = int(json.loads(body)["messages"][0]["content"].removeprefix("row "))
        if row % 5 != 3:
            yield answer_to(body)
            return
        yield refusal
        time.sleep(0.001)
        yield refusal

    ends = own_or_failed(answers, 50)
    assert {row: end for row, end in enumerate(ends) if end.startswith("row") and end != f"row {row}"} == {}
    assert sum(end.startswith("row") for end in ends) >= 30


def own_or_failed(
    answers: Callable[[bytes], Iterator[bytes]], num: int, *, shows_text: bool = False, **settings: Any
) -> list[str]:
    """Each row's text, or the kind of its error or its text; one row after another."""

    async def scenario(client: AsyncHTTPClient) -> list[str]:
        async def ask(row: int) -> str:
            try:
                return (await client.complete(messages=[{"role": "user", "content": f"row {row}"}], model="m")).texts[0]
            except RequestError as error:
                return str(error) if shows_text else type(error).__name__

        ends = [await ask(row) for row in range(num)]
        await client.aclose()
        return ends

    with ThreadedServer(answers) as server:
        return asyncio.run(scenario(AsyncHTTPClient(server.base_url, **{"max_retries": 0, **settings})))


def test_an_error_that_is_sent_twice_fails_one_row() -> None:
    """A copy of a refusal is not read as the next row's."""

    def answers(body: bytes) -> Iterator[bytes]:
        is_bad = json.loads(body)["messages"][0]["content"] == "row 3"
        answer = answer_to(body, error="bad", status="400 Bad Request") if is_bad else answer_to(body)
        yield answer
        if is_bad:
            time.sleep(0.001)
            yield answer

    ends = own_or_failed(answers, 10)
    assert ends == [f"row {row}" if row != 3 else "BadRequestError" for row in range(10)]


def test_the_summary_says_that_a_server_sends_answers_twice(tmp_path: Path) -> None:
    """By how many connections were closed for it, although no row failed."""
    pq.write_table(pa.table({"text": [f"row {row}" for row in range(40)]}), tmp_path / "in.parquet")
    words = ["run", "--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out"), "--engine", "local"]
    words += ["--model", "m", "--prompt", "{{ text }}", "--output-column", "x", "--no-check-server"]
    with ThreadedServer(delayed) as server:
        result = CliRunner(env={"COLUMNS": "200"}).invoke(main, [*words, "--base-url", server.base_url])
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.output.splitlines() if "unasked bytes" in line]
    assert int(line.split()[2]) >= 3
    assert "an answer twice" in line
    assert pq.read_table(tmp_path / "out")["x"].to_pylist() == [f"row {row}" for row in range(40)]


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
