"""How many at once."""

from __future__ import annotations

import asyncio

from nemo_llm_stage.client.limit import Limit, LoopLocal


async def hold(limit: Limit, name: str, order: list[str], turn: asyncio.Event) -> None:
    async with limit:
        order.append(name)
        await turn.wait()


def test_first_come_first_served() -> None:
    """Waiters get their permits in the order they came, and never more than there are."""

    async def scenario() -> None:
        limit, order, turn = Limit(2), [], asyncio.Event()
        tasks = [asyncio.create_task(hold(limit, name, order, turn)) for name in "abcde"]
        await asyncio.sleep(0)
        assert (order, limit.in_flight, limit.num_waiting) == (["a", "b"], 2, 3)
        turn.set()
        await asyncio.gather(*tasks)
        assert (order, limit.in_flight, limit.num_waiting) == (list("abcde"), 0, 0)

    asyncio.run(scenario())


def test_a_cancelled_waiter_costs_no_permit() -> None:
    """Cancelled while waiting, or in the very moment it was given one."""

    async def scenario() -> None:
        limit, order, turn = Limit(1), [], asyncio.Event()
        first, second, third = (asyncio.create_task(hold(limit, name, order, turn)) for name in "abc")
        await asyncio.sleep(0)
        third.cancel()
        turn.set()
        await first
        second.cancel()
        await asyncio.wait([second, third])
        assert (limit.in_flight, limit.num_waiting) == (0, 0)
        async with limit:
            assert limit.in_flight == 1

    asyncio.run(scenario())


def test_returned_permits_are_told_of() -> None:
    """Whoever feeds the limit hears of every permit that comes back."""

    async def scenario() -> int:
        heard = []
        limit = Limit(1)
        limit.on_release = lambda: heard.append(limit.in_flight)
        for _ in range(3):
            async with limit:
                pass
        return len(heard)

    assert asyncio.run(scenario()) == 3


def test_each_loop_has_its_own() -> None:
    """Made when first asked for on that loop, the same after, gone when taken."""

    async def scenario() -> object:
        value = local.get()
        assert local.get() is value
        assert local.pop() is value
        assert local.pop() is None
        return value

    local = LoopLocal(object)
    assert asyncio.run(scenario()) is not asyncio.run(scenario())
