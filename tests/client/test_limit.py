"""How many at once."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nemo_llm_stage.client.limit import Limit, LimitStatistics, LoopLocal


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


def test_waiters_may_be_cancelled_in_the_moment_a_permit_comes() -> None:
    """Each of them ends as cancelled, whether or not its permit was on its way, and no permit is lost."""

    async def scenario() -> None:
        limit = Limit(1)
        async with limit:
            waiting = [asyncio.create_task(hold(limit, "x", [], asyncio.Event())) for _ in range(50)]
            await asyncio.sleep(0)
            for task in waiting:
                task.cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
        assert limit.statistics() == LimitStatistics(1, in_flight=0, num_waiting=0)

    asyncio.run(scenario())


def test_a_timeout_at_the_limit_is_a_timeout() -> None:
    """Not an error of the limit's own."""

    async def scenario() -> None:
        limit = Limit(1)
        async with limit:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0), limit:
                    raise AssertionError
        async with limit:
            assert limit.in_flight == 1

    asyncio.run(scenario())


def test_a_limit_can_be_changed_while_it_is_used() -> None:
    """Raised, it lets waiters in at once; lowered, it drains."""

    async def scenario() -> None:
        limit, order, turn = Limit(1), [], asyncio.Event()
        tasks = [asyncio.create_task(hold(limit, name, order, turn)) for name in "abcd"]
        await asyncio.sleep(0)
        limit.resize(3)
        await asyncio.sleep(0)
        assert (order, limit.statistics()) == (["a", "b", "c"], LimitStatistics(3, in_flight=3, num_waiting=1))
        limit.resize(2)
        assert limit.in_flight == 3
        turn.set()
        await asyncio.gather(*tasks)
        assert limit.statistics() == LimitStatistics(2, in_flight=0, num_waiting=0)
        with pytest.raises(ValueError, match="at least 1"):
            limit.resize(0)

    asyncio.run(scenario())


class LimitMachine(RuleBasedStateMachine):
    """Requests come, end, and are cancelled in any order, while the cap changes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.limit = Limit(2)
        self.highest = 2
        self.came: list[int] = []
        self.entered: list[int] = []
        self.cancelled: set[int] = set()
        self.is_in_order = True
        self.ends: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def request(self, number: int) -> None:
        async with self.limit:
            self.is_in_order &= self.num_before(number) <= self.limit.in_flight - len(self.inside) - 1
            self.entered.append(number)
            await self.ends[number].wait()

    def num_before(self, number: int) -> int:
        """Requests that came earlier and have not entered; they must have their permits, and wake up at once."""
        return len(set(range(number)) - set(self.entered) - self.cancelled)

    @property
    def inside(self) -> list[int]:
        return [number for number in self.entered if not self.tasks[number].done()]

    @rule()
    def come(self) -> None:
        number = len(self.came)
        self.came.append(number)
        self.ends[number] = asyncio.Event()
        self.tasks[number] = self.loop.create_task(self.request(number))
        self.loop.run_until_complete(asyncio.sleep(0))  # it asks for its permit now

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.inside:
            self.ends[data.draw(st.sampled_from(self.inside))].set()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        alive = [number for number, task in self.tasks.items() if not task.done()]
        if alive:
            self.cancelled.add(number := data.draw(st.sampled_from(alive)))
            self.tasks[number].cancel()

    @rule(size=st.integers(1, 4))
    def resize(self, size: int) -> None:
        self.limit.resize(size)
        self.highest = max(size, self.limit.in_flight)  # a lower cap drains

    @rule(num_ticks=st.integers(1, 3))
    def go_on(self, num_ticks: int) -> None:
        for _ in range(num_ticks):
            self.loop.run_until_complete(asyncio.sleep(0))

    @rule()
    def settle(self) -> None:
        for _ in range(10):
            self.loop.run_until_complete(asyncio.sleep(0))
        alive = [number for number, task in self.tasks.items() if not task.done()]
        assert self.limit.in_flight == len(self.inside)
        assert len(self.inside) >= min(self.limit.max_concurrent_requests, len(alive))

    @invariant()
    def the_order_is_that_of_coming(self) -> None:
        assert self.is_in_order

    @invariant()
    def the_cap_holds(self) -> None:
        assert len(self.inside) <= self.limit.in_flight <= self.highest

    def teardown(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        self.settle()
        assert self.limit.statistics().in_flight == self.limit.num_waiting == 0
        self.loop.close()


TestLimitMachine = LimitMachine.TestCase
TestLimitMachine.settings = hypothesis_settings(max_examples=30, stateful_step_count=30, deadline=None)
