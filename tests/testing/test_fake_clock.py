"""A clock whose time is the test's."""

from __future__ import annotations

import asyncio

from nemo_llm_stage.testing import FakeClock


def test_sleepers_wake_in_the_order_of_their_times() -> None:
    """Hours pass in no time."""

    async def scenario() -> list[tuple[str, float]]:
        clock, woken = FakeClock(), []

        async def sleep(name: str, seconds: float) -> None:
            await clock.sleep(seconds)
            woken.append((name, clock.monotonic()))

        await asyncio.gather(sleep("c", 3600.0), sleep("a", 1.0), sleep("b", 60.0), sleep("now", 0.0))
        return woken

    assert asyncio.run(scenario()) == [("now", 0.0), ("a", 1.0), ("b", 60.0), ("c", 3600.0)]


def test_time_stands_still_until_it_is_moved() -> None:
    """Without jumps only `advance` moves it; a cancelled sleeper is forgotten."""

    async def scenario() -> None:
        clock = FakeClock(jumps=False)
        short, long, cancelled = (asyncio.create_task(clock.sleep(seconds)) for seconds in (1.0, 10.0, 0.5))
        await asyncio.sleep(0)
        cancelled.cancel()
        await clock.advance(2.0)
        assert (clock.now, short.done(), long.done()) == (2.0, True, False)
        await clock.advance(8.0)
        assert long.done()

    asyncio.run(scenario())
