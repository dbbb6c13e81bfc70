"""One timer for many deadlines."""

from __future__ import annotations

import asyncio

from nemo_llm_stage.client.http.deadlines import SLACK_S, Deadlines


class Wait:
    """Something with a deadline that may move."""

    def __init__(self, due_s: float) -> None:
        self.due = due_s
        self.timed_out: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def due_s(self) -> float:
        """See `Timed`."""
        return self.due

    def time_out(self, now_s: float) -> None:
        """See `Timed`."""
        self.timed_out.set_result(now_s)


def test_each_is_told_at_its_own_time_whatever_the_order_in_which_they_came() -> None:
    """Also one whose time is earlier than all before it."""

    async def scenario() -> None:
        deadlines, now_s = Deadlines(), asyncio.get_running_loop().time()
        waits = [Wait(now_s + after_s) for after_s in (0.09, 0.03, 0.06)]
        for wait in waits:
            deadlines.add(wait, wait.due)
        told = await asyncio.gather(*(wait.timed_out for wait in waits))
        assert told[1] < told[2] < told[0]
        assert all(at_s >= wait.due for at_s, wait in zip(told, waits, strict=True))
        assert told[1] < waits[0].due, "the earliest waits for nobody"

    asyncio.run(scenario())


def test_one_that_is_discarded_is_not_told() -> None:
    """The others are."""

    async def scenario() -> None:
        deadlines, now_s = Deadlines(), asyncio.get_running_loop().time()
        first, second = Wait(now_s + 0.02), Wait(now_s + 0.02 + 2 * SLACK_S)
        for wait in (first, second):
            deadlines.add(wait, wait.due)
        deadlines.discard(first)
        deadlines.discard(first)
        await second.timed_out
        assert not first.timed_out.done()

    asyncio.run(scenario())


def test_a_deadline_may_move_later() -> None:
    """As a read timeout does with each byte."""

    async def scenario() -> None:
        deadlines, now_s = Deadlines(), asyncio.get_running_loop().time()
        moving = Wait(now_s + 0.02)
        deadlines.add(moving, moving.due)
        moving.due = now_s + 0.08
        assert await moving.timed_out >= moving.due

    asyncio.run(scenario())
