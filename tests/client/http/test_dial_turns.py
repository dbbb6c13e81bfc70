"""Connections are begun a few hundred at a time, to one server and to all of them."""

from __future__ import annotations

import asyncio

import pytest

from nemo_llm_stage.client.http.dial_turns import MAX_DIALS, MAX_STARTS, START_S, DialTurns, Starts
from nemo_llm_stage.testing.virtual_time import run_in_virtual_time


def dial_at_once(num_servers: int, num_each: int) -> tuple[int, int]:
    """Begin connections to each server at once; return how many are open in the end, and the most that were."""
    now, most = 0, 0

    async def dial(turns: DialTurns) -> None:
        nonlocal now, most
        async with turns.turn(60.0):
            now, most = now + 1, max(most, now + 1)
            await asyncio.sleep(0)
            now -= 1

    async def dial_all() -> None:
        starts = Starts()
        servers = [DialTurns(starts) for _ in range(num_servers)]
        await asyncio.gather(*(dial(turns) for turns in servers for _ in range(num_each)))

    asyncio.run(dial_all())
    return now, most


def test_so_many_are_begun_at_once_and_no_more() -> None:
    """The others follow as these are through."""
    assert dial_at_once(1, 3 * MAX_DIALS) == (0, MAX_DIALS)


def test_a_turn_that_never_comes_is_given_up() -> None:
    """Where nobody gets through: the server is down, and its rows are for others."""

    async def wait_in_vain() -> None:
        turns = DialTurns(Starts())
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


def test_to_all_servers_so_many_are_begun_at_once_and_no_more() -> None:
    """However many there are: what this process cannot open in time would all be given up."""
    assert dial_at_once(8, MAX_DIALS) == (0, MAX_STARTS)


def test_servers_that_do_not_answer_keep_others_waiting_for_a_moment_only() -> None:
    """A connection that waits for its server costs this process nothing."""

    async def dial_all() -> float:
        starts, never = Starts(), asyncio.Event()

        async def hang(turns: DialTurns) -> None:
            async with turns.turn(60.0):
                await never.wait()

        down = [DialTurns(starts) for _ in range(4)]
        hanging = [asyncio.create_task(hang(turns)) for turns in down for _ in range(MAX_DIALS)]
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        async with DialTurns(starts).turn(60.0):
            waited_s = loop.time() - started_s
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        return waited_s

    assert run_in_virtual_time(dial_all) < 3 * START_S
