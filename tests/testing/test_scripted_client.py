from __future__ import annotations

import asyncio
import pickle

import pytest

from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import ClientError, RateLimitError
from nemo_llm_stage.testing import ScriptedClient, expected_answer

MESSAGES = [{"role": "user", "content": "hello"}]


def test_it_answers_what_the_simulated_server_answers():
    """Without a script, the usual answers, n of them."""
    texts = asyncio.run(ScriptedClient().query_model(messages=MESSAGES, model="m", generation_config={"n": 2}))
    assert [expected_answer(MESSAGES), expected_answer(MESSAGES, choice=1)] == texts


def test_a_list_is_worked_off_in_order():
    """Texts, several texts, a Completion; an exception is raised and, if it may pass, asked again."""
    client = ScriptedClient(["a", ["b", "c"], RateLimitError("slow down"), Completion(texts=("d",))], base_delay=0)

    async def ask() -> list[Completion]:
        return [await client.complete(messages=MESSAGES, model="m") for _ in range(3)]

    answers = asyncio.run(ask())
    assert [answer.texts for answer in answers] == [("a",), ("b", "c"), ("d",)]
    assert [answer.attempts for answer in answers] == [1, 1, 2]
    assert len(client.attempts) == 4


def test_an_empty_list_is_an_error_of_the_row():
    """A script that is too short says so."""
    with pytest.raises(ClientError, match="the script has 0 answers"):
        asyncio.run(ScriptedClient([]).complete(messages=MESSAGES, model="m"))


def test_a_function_may_wait_and_the_most_in_flight_is_counted():
    """A coroutine function holds its requests until the test lets them go; the limit shows."""
    gate = asyncio.Event()

    async def wait_then_answer(messages: list[dict[str, object]]) -> str:
        await gate.wait()
        return str(messages[0]["content"])

    client = ScriptedClient(wait_then_answer, max_concurrent_requests=3)

    async def ask() -> list[list[str]]:
        tasks = [asyncio.create_task(client.query_model(messages=MESSAGES, model="m")) for _ in range(10)]
        while client.in_flight < 3:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(ask()) == [["hello"]] * 10
    assert (client.max_in_flight, client.in_flight) == (3, 0)


def test_it_remembers_what_it_was_asked():
    """Messages, model and parameters of every attempt."""
    client = ScriptedClient(["x"])
    asyncio.run(client.query_model(messages=iter(MESSAGES), model="m", generation_config={"max_tokens": 7}))
    attempt = client.attempts[0]
    assert (attempt.messages, attempt.model, attempt.generation_config.max_tokens) == (MESSAGES, "m", 7)


def test_it_can_be_pickled():
    """Like every client, before and after use."""
    client = ScriptedClient(["x", "y"])
    asyncio.run(client.query_model(messages=MESSAGES, model="m"))
    copy = pickle.loads(pickle.dumps(client))
    assert asyncio.run(copy.query_model(messages=MESSAGES, model="m")) == ["y"]
