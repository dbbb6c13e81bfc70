"""A pause and an allowance hold requests back at the limit; what they take is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from nemo_llm_stage.client.limit import Limit
from nemo_llm_stage.client.throttle import FIRST_GUESS_TOKENS, Allowance, Grant
from nemo_llm_stage.core import Usage


def make_limit(size: int = 8) -> tuple[Limit, Allowance]:
    limit = Limit(size)
    limit.allowance = Allowance([limit])
    return limit, limit.allowance


async def enter(limit: Limit) -> bool:
    """Whether a permit is there at once; it is kept."""
    task = asyncio.ensure_future(limit.__aenter__())
    await asyncio.sleep(0)
    return task.done()


def on_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@on_a_loop
async def test_a_paused_limit_gives_no_permits_until_it_is_resumed() -> None:
    """Whoever waits is let in then."""
    limit = Limit(2)
    limit.pause()
    waiting = asyncio.ensure_future(limit.__aenter__())
    await asyncio.sleep(0)
    assert not waiting.done()
    limit.resume()
    await waiting
    assert limit.in_flight == 1


@on_a_loop
async def test_a_permit_given_back_in_a_pause_stays_free() -> None:
    """Requests in flight end, and no other takes their place."""
    limit = Limit(1)
    await limit.__aenter__()
    waiting = asyncio.ensure_future(limit.__aenter__())
    await asyncio.sleep(0)
    limit.pause()
    await limit.__aexit__()
    await asyncio.sleep(0)
    assert (limit.in_flight, waiting.done()) == (0, False)
    waiting.cancel()


@on_a_loop
async def test_no_more_requests_than_granted_are_let_in() -> None:
    """A larger grant lets the next ones in."""
    limit, allowance = make_limit()
    allowance.grant(Grant(num_requests=3))
    assert [await enter(limit) for _ in range(5)] == [True, True, True, False, False]
    allowance.grant(Grant(num_requests=4))
    assert limit.in_flight == 4
    assert allowance.spending.num_requests == 4


@on_a_loop
async def test_two_clients_spend_one_allowance() -> None:
    """It belongs to the process, not to a client."""
    limits = Limit(8), Limit(8)
    allowance = Allowance(limits)
    for limit in limits:
        limit.allowance = allowance
    allowance.grant(Grant(num_requests=2))
    assert [await enter(limits[place]) for place in (0, 1, 0, 1)] == [True, True, False, False]


@pytest.mark.parametrize(
    "grant", [Grant(output_tokens=100), Grant(cost=0.01, price_input=0.0, price_output=100.0)], ids=["tokens", "cost"]
)
def test_spent_tokens_end_what_is_let_in(grant: Grant) -> None:
    """Those of requests in flight come on top."""

    async def run() -> None:
        limit, allowance = make_limit()
        allowance.grant(grant)
        assert await enter(limit)
        allowance.note_answer(Usage(50, 99))
        assert await enter(limit)
        allowance.note_answer(Usage(50, 1))
        assert not await enter(limit)

    asyncio.run(run())


@on_a_loop
async def test_requests_in_flight_reserve_tokens_of_a_rate() -> None:
    """As many as an answer took on average; at first a guess."""
    limit, allowance = make_limit()
    allowance.grant(Grant(num_tokens=2 * FIRST_GUESS_TOKENS + 1))
    assert [await enter(limit) for _ in range(4)] == [True, True, True, False]
    allowance.note_answer(Usage(5, 5))
    await limit.__aexit__()
    assert limit.in_flight == 3
    assert allowance.spending.num_tokens == 10


@on_a_loop
async def test_a_permit_under_which_nothing_was_sent_costs_nothing() -> None:
    """A request may find the server down when its turn comes."""
    limit, allowance = make_limit()
    allowance.grant(Grant(num_requests=1))
    async with limit:
        limit.note_unsent()
    assert allowance.spending.num_requests == 0
    assert await enter(limit)
