"""Connections to one server are begun a few hundred at a time."""

from __future__ import annotations

import asyncio

import pytest

from nemo_llm_stage.client.http.dial_turns import MAX_DIALS, DialTurns


def test_so_many_are_begun_at_once_and_no_more() -> None:
    """The others follow as these are through."""
    now, most = 0, 0

    async def dial(turns: DialTurns) -> None:
        nonlocal now, most
        async with turns.turn(60.0):
            now, most = now + 1, max(most, now + 1)
            await asyncio.sleep(0)
            now -= 1

    async def dial_all() -> None:
        turns = DialTurns()
        await asyncio.gather(*(dial(turns) for _ in range(3 * MAX_DIALS)))

    asyncio.run(dial_all())
    assert (now, most) == (0, MAX_DIALS)


def test_a_turn_that_never_comes_is_given_up() -> None:
    """Where nobody gets through: the server is down, and its rows are for others."""

    async def wait_in_vain() -> None:
        turns = DialTurns()
        never = asyncio.Event()

        async def hang() -> None:
            async with turns.turn(60.0):
                await never.wait()

        hanging = [asyncio.create_task(hang()) for _ in range(MAX_DIALS)]
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with turns.turn(0.01):
                pass
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        async with turns.turn(60.0):  # those that were cancelled have given their turns back
            pass

    asyncio.run(wait_in_vain())
