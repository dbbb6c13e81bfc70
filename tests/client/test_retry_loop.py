"""The retry loop: how often, how long, and what it shares with other requests. No test sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from nemo_llm_stage.client.limit import Limit
from nemo_llm_stage.client.retry import RetryPolicy, send
from nemo_llm_stage.errors import (
    BadRequestError,
    ConfigError,
    ConnectionFailedError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
)
from nemo_llm_stage.testing import FakeClock


def run(script: Sequence[Any], policy: RetryPolicy, clock: FakeClock | None = None) -> Any:
    """Return what the loop returns, or the error, for a request that ends as `script` says; the last entry repeats."""
    outcomes = list(script)

    async def request(_: object) -> Any:
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def scenario() -> Any:
        try:
            return await send(request, Limit(1), policy, clock=clock or FakeClock())
        except Exception as error:  # noqa: BLE001 - the outcome
            return error

    return asyncio.run(scenario())


def test_a_success_at_once_is_just_that() -> None:
    """Nothing failed before it, and nobody slept."""
    clock = FakeClock()
    assert run(["yes"], RetryPolicy(), clock) == ("yes", ())
    assert clock.sleeps == []


def test_the_failures_before_a_success_are_told() -> None:
    """Oldest first."""
    assert run([ServerError("a"), RateLimitError("b"), "yes"], RetryPolicy()) == ("yes", ("server_error", "rate_limit"))


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_retries_are_counted(max_retries: int) -> None:
    """After so many the last failure is final and knows of all."""
    clock = FakeClock()
    error = run([ServerError("no")], RetryPolicy(max_retries=max_retries), clock)
    assert error.failures == ("server_error",) * (max_retries + 1)
    assert len(clock.sleeps) == max_retries


@pytest.mark.parametrize("error", [BadRequestError("no"), ConfigError("no"), ValueError("no")], ids=repr)
def test_what_cannot_pass_is_not_sent_again(error: Exception) -> None:
    """However long the policy would wait."""
    clock = FakeClock()
    assert run([error], RetryPolicy(give_up_after_s=100.0), clock) is error
    assert clock.sleeps == []


def test_a_request_with_time_left_goes_on_beyond_its_retries() -> None:
    """Until it is older than give_up_after; the last pause ends exactly then."""
    clock = FakeClock()
    error = run([ServerError("no")], RetryPolicy(max_retries=2, give_up_after_s=3600.0), clock)
    assert clock.now == pytest.approx(3600.0)
    assert 60 < len(error.failures) < 250
    assert max(clock.sleeps) <= 60.0


@pytest.mark.parametrize("asked_s", [86_400.0, 31_536_000.0])
def test_a_server_that_asks_for_too_long_gets_the_time_that_is_left(asked_s: float) -> None:
    """One more send at the end, and then the request is given up."""
    clock = FakeClock()
    error = run([RateLimitError("no", retry_after_s=asked_s)], RetryPolicy(give_up_after_s=40.0, max_retries=0), clock)
    assert clock.sleeps == [40.0]
    assert error.attempts == 2


def test_refused_connections_are_no_attempts() -> None:
    """They never reached the server; the kinds tell of them."""
    error = run([ConnectionFailedError("no"), RequestTimeoutError("no")], RetryPolicy(max_retries=3))
    assert (len(error.failures), error.attempts) == (4, 3)


def test_a_permit_is_held_while_sending_only() -> None:
    """Nine requests that fail once share one permit; none waits for another's pause."""

    async def scenario() -> float:
        limit, clock = Limit(1), FakeClock()
        failed: set[int] = set()

        def request(number: int) -> Callable[[], Any]:
            async def request(_: object) -> int:
                assert limit.in_flight == 1
                if number in failed:
                    return number
                failed.add(number)
                raise RateLimitError("no", retry_after_s=100.0)

            return request

        policy = RetryPolicy(base_delay=0.0)
        answers = await asyncio.gather(*(send(request(n), limit, policy, clock=clock) for n in range(9)))
        assert [answer for answer, _ in answers] == list(range(9))
        return clock.now

    assert asyncio.run(scenario()) == 100.0


def test_cancelling_ends_the_loop_at_once() -> None:
    """While sending or while waiting; the permit is free."""

    async def scenario() -> None:
        limit, clock = Limit(1), FakeClock(jumps=False)

        async def hang(_: object) -> None:
            await asyncio.Event().wait()

        async def fail(_: object) -> None:
            raise ServerError("no")

        for request in (hang, fail):
            task = asyncio.create_task(send(request, limit, RetryPolicy(), clock=clock))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert limit.in_flight == 0

    asyncio.run(scenario())
