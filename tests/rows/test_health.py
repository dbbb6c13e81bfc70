"""A row's own failure, an outage, and a run that cannot succeed are told apart. No test sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from nemo_llm_stage.client.generation import GenerationConfig
from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import (
    ConnectionDroppedError,
    ConnectionFailedError,
    InvalidResponseError,
    RateLimitError,
    RequestTimeoutError,
    RunError,
    ServerError,
)
from nemo_llm_stage.rows.health import NUM_SAME_FAILURES, Health
from nemo_llm_stage.rows.query import GIVE_UP_AFTER_S, Querier, terms_of
from nemo_llm_stage.testing import FakeClock, ScriptedClient

TERMS = terms_of("m", GenerationConfig())


class World:
    """Requests to a server whose answers depend on their text and on the time."""

    def __init__(self, answer: Callable[[str, float], str | Exception], **settings: Any) -> None:
        self.clock = FakeClock()
        self.client = ScriptedClient(self.reply, **{"max_concurrent_requests": 16, **settings})
        self.client.clock = self.clock
        self.health = Health(self.clock)
        self.sends: list[tuple[float, str]] = []
        self.answer = answer

    async def reply(self, messages: list[dict[str, Any]]) -> str | Exception:
        text = messages[0]["content"]
        self.sends.append((self.clock.now, text))
        await asyncio.sleep(0)
        return self.answer(text, self.clock.now)

    def run(self, texts: Iterable[str], give_up_after_s: float = GIVE_UP_AFTER_S) -> list[Any]:
        async def scenario() -> list[Any]:
            querier = Querier(self.client, give_up_after_s=give_up_after_s, health=self.health, memo=None)
            rows = (querier.query([{"role": "user", "content": text}], TERMS, None) for text in texts)
            return await asyncio.gather(*rows, return_exceptions=True)

        outcomes = asyncio.run(scenario())
        return [outcome[0] if isinstance(outcome, tuple) else outcome for outcome in outcomes]

    def num_sends(self, text: str) -> int:
        return sum(sent == text for _, sent in self.sends)


OWN_FAILURES = [
    ServerError("HTTP 500: CUDA error, request 8f2e1a77c0", status=500),
    InvalidResponseError("The answer holds no text (finish_reason 'stop')."),
    InvalidResponseError("The server reported an error under status 200: upstream"),
    ConnectionDroppedError("The connection ended before the whole answer."),
    RequestTimeoutError("No answer within 600 s."),
]


@pytest.mark.parametrize("failure", OWN_FAILURES, ids=lambda failure: failure.kind)
def test_a_row_that_fails_in_the_same_way_again_and_again_fails_by_itself(failure: Exception) -> None:
    """After five sends, while the others are answered; its error says so."""
    world = World(lambda text, _: type(failure)(str(failure)) if text == "bad" else text)
    *others, bad = world.run([*map(str, range(50)), "bad"])
    assert {type(outcome) for outcome in others} == {Completion}
    assert world.num_sends("bad") == bad.attempts == NUM_SAME_FAILURES
    assert "5 times in this way while others were answered" in str(bad)


def test_the_last_rows_of_a_job_can_fail_by_themselves_too() -> None:
    """Nobody else is left to be answered by then; how the server did just before is enough."""
    world = World(lambda text, _: ServerError("HTTP 500", status=500) if text.startswith("bad") else text)
    world.run(map(str, range(50)))
    outcomes = world.run(["bad 1", "bad 2", "bad 3"])
    assert [outcome.attempts for outcome in outcomes] == [NUM_SAME_FAILURES] * 3


INNOCENT = [
    RateLimitError("HTTP 429: slow down", status=429),
    *(ServerError(f"HTTP {status}", status=status) for status in (502, 503, 504)),
]


@pytest.mark.parametrize("failure", INNOCENT, ids=str)
def test_a_busy_server_uses_no_row_up(failure: Exception) -> None:
    """Though others are answered: 429, 502, 503 and 504 say nothing of the request."""
    world = World(lambda text, now: failure if text == "unlucky" and now < 3600 else text)
    assert world.run([*map(str, range(50)), "unlucky"])[-1].texts == ("unlucky",)
    assert world.num_sends("unlucky") > 20


@pytest.mark.parametrize("kind", [ServerError, RequestTimeoutError, ConnectionDroppedError, ConnectionFailedError])
def test_an_outage_uses_no_row_up(kind: type[Exception]) -> None:
    """The server answers, then fails everything for ten minutes in the same way, and is back."""
    world = World(lambda text, now: kind("no") if 0 < now < 600 and text != "first" else text)
    world.run(map(str, range(30)))
    world.clock.now = 1.0
    assert [outcome.texts[0] for outcome in world.run(map(str, range(200)))] == list(map(str, range(200)))


@pytest.mark.parametrize("num_rows", [1, 3, 500])
def test_a_server_that_fails_every_request_from_the_start_stops_the_run(num_rows: int) -> None:
    """Within a minute, with its words."""
    world = World(lambda *_: ServerError("HTTP 500: model not loaded", status=500))
    errors = world.run(map(str, range(num_rows)))
    stops = [error for error in errors if isinstance(error, RunError)]
    assert "HTTP 500: model not loaded" in str(stops[0])
    first_stop = [now for now, _ in world.sends][4 * num_rows]
    assert first_stop < 60


def test_a_server_that_is_still_starting_does_not_stop_the_run() -> None:
    """Refused connections and 503 from the start are waited for."""
    answers = {True: ConnectionFailedError("refused"), False: ServerError("HTTP 503: loading", status=503)}
    world = World(lambda text, now: answers[now < 120] if now < 300 else text)
    assert all(isinstance(outcome, Completion) for outcome in world.run(map(str, range(100))))


def test_one_slow_first_row_does_not_stop_the_run() -> None:
    """Others are in flight and may be answered yet."""

    async def slow(messages: list[dict[str, Any]]) -> str | Exception:
        if messages[0]["content"] == "bad":
            return ServerError("HTTP 500", status=500)
        await world.clock.sleep(100.0)
        return "fine"

    world = World(lambda *_: "")
    world.client = ScriptedClient(slow, max_concurrent_requests=16)
    world.client.clock = world.clock
    outcomes = world.run(["bad", "slow"])
    assert outcomes[1].texts == ("fine",)
    assert not isinstance(outcomes[0], RunError)


def test_while_connections_are_refused_one_request_at_a_time_finds_out() -> None:
    """Half a minute of it costs a few connections, whatever the number of rows; then all go on at once."""
    world = World(lambda text, now: ConnectionFailedError("refused") if now < 30 else text)
    outcomes = world.run(map(str, range(2_000)))
    assert {type(outcome) for outcome in outcomes} == {Completion}
    assert len(world.sends) - 2_000 <= 16 + 20
    assert {now for now, _ in world.sends if now >= 30} == {world.clock.now}
    assert 30 <= world.clock.now <= 36
    assert sum(outcome.attempts for outcome in outcomes) == 2_000
    assert sum(outcome.failures.count("connection_failed") for outcome in outcomes) == len(world.sends) - 2_000


def test_a_server_that_never_comes_back_fails_the_rows_in_the_end() -> None:
    """All of them about when they have waited for give_up_after."""
    world = World(lambda *_: ConnectionFailedError("refused"))
    outcomes = world.run(map(str, range(300)), give_up_after_s=3600.0)
    assert {type(outcome) for outcome in outcomes} == {ConnectionFailedError}
    assert 3600 <= world.clock.now <= 3620


def test_without_waiting_each_request_has_its_own_retries() -> None:
    """give_up_after 0: nothing is held back."""
    world = World(lambda *_: ConnectionFailedError("refused"), max_retries=2)
    assert [len(outcome.failures) for outcome in world.run(map(str, range(20)), give_up_after_s=0.0)] == [3] * 20


def test_a_cancelled_probe_lets_another_find_out() -> None:
    """No request waits for one that is gone."""

    async def scenario() -> str:
        querier = Querier(world.client, give_up_after_s=100.0, health=world.health, memo=None)
        rows = [
            asyncio.create_task(querier.query([{"role": "user", "content": text}], TERMS, None)) for text in "abcdef"
        ]
        await world.clock.sleep(3.0)
        for row in rows[:-1]:
            row.cancel()
        return (await rows[-1])[0].texts[0]

    world = World(lambda text, now: ConnectionFailedError("refused") if now < 10 else text)
    assert asyncio.run(scenario()) == "f"


def test_a_wait_says_why_and_until_when() -> None:
    """And what the server asked for, where that is more than is left."""
    error = RateLimitError("HTTP 429: slow down.", retry_after_s=86_400.0)
    troubles: list[str | None] = []

    def answer(text: str, now: float) -> str | Exception:
        troubles.append(world.health.trouble)
        return error

    world = World(answer, max_retries=0)
    world.run(["x"], give_up_after_s=40.0)
    assert troubles == [None, "rate_limit: HTTP 429: slow down.; next try in 0 s (the server asks for 86,400 s)"]
