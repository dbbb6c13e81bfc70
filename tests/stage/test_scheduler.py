"""Requests in flight equal the limit from the first row to the last ones, and memory stays flat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import overload

import pytest

from nemo_llm_stage.client.limit import Limit
from nemo_llm_stage.stage.scheduler import NUM_OPEN_BEYOND_LIMIT, Scheduler


class Server:
    """Answers a row when the test says so; knows how many it holds."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.turns: dict[int, asyncio.Future[None]] = {}
        self.num_opened = 0

    async def run_row(self, row: int) -> int:
        self.num_opened += 1
        async with self.limit:
            self.turns[row] = asyncio.get_running_loop().create_future()
            await self.turns[row]
        return row * 10

    def answer(self, row: int) -> None:
        self.turns.pop(row).set_result(None)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def on_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())  # type: ignore[arg-type]

    run.__doc__, run.__name__ = test.__doc__, test.__name__
    return run


@on_loop
async def test_results_come_in_the_order_of_rows() -> None:
    """Whatever the order of answers."""
    limit = Limit(3)
    server = Server(limit)
    run = asyncio.ensure_future(Scheduler(limit).run([1, 2, 3], server.run_row))
    await settle()
    for row in (3, 1, 2):
        server.answer(row)
    assert await run == [10, 20, 30]


@on_loop
async def test_the_next_run_fills_the_gaps_of_this_one() -> None:
    """No barrier: three permits stay taken until the last three rows of all runs."""
    limit = Limit(3)
    server = Server(limit)
    scheduler = Scheduler(limit)
    runs = [asyncio.ensure_future(scheduler.run(range(start, start + 4), server.run_row)) for start in (0, 10, 20)]
    await settle()
    for left in range(12, 0, -1):
        assert len(server.turns) == min(3, left)
        server.answer(next(iter(server.turns)))
        await settle()
    assert [len(await run) for run in runs] == [4, 4, 4]


@on_loop
async def test_rows_are_opened_just_ahead_of_sending() -> None:
    """A million rows do not make a million tasks."""
    limit = Limit(8)
    server = Server(limit)
    run = asyncio.ensure_future(Scheduler(limit).run(range(1_000_000), server.run_row))
    await settle()
    assert 8 < server.num_opened <= 16
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


@on_loop
async def test_a_sleeping_row_makes_room_for_another() -> None:
    """Rows waiting for a retry hold no permit, so others are sent meanwhile; there is an end to that too."""
    limit = Limit(2)
    num_asleep = 0
    forever = asyncio.Event()

    async def run_row(row: int) -> None:
        nonlocal num_asleep
        async with limit:
            pass
        num_asleep += 1
        await forever.wait()

    run = asyncio.ensure_future(Scheduler(limit).run(range(100_000), run_row))
    for _ in range(3000):
        await asyncio.sleep(0)
    assert num_asleep == NUM_OPEN_BEYOND_LIMIT + 2 * 2
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


@on_loop
async def test_what_a_row_raises_ends_its_run_and_no_other() -> None:
    """The broken run's rows are cancelled; the other run goes on, with all permits."""
    limit = Limit(2)
    server = Server(limit)
    scheduler = Scheduler(limit)

    async def broken(row: int) -> int:
        await asyncio.sleep(0)
        raise RuntimeError("no")

    bad = asyncio.ensure_future(scheduler.run(range(5), broken))
    good = asyncio.ensure_future(scheduler.run([1, 2, 3], server.run_row))
    with pytest.raises(RuntimeError, match="no"):
        await bad
    await settle()
    assert sorted(server.turns) == [1, 2]
    for row in (1, 2, 3):
        server.answer(row)
        await settle()
    assert await good == [10, 20, 30]
    assert (limit.in_flight, limit.num_waiting) == (0, 0)


@on_loop
async def test_a_cancelled_run_gives_its_permits_back() -> None:
    """Also those of rows that had not begun."""
    limit = Limit(2)
    server = Server(limit)
    scheduler = Scheduler(limit)
    run = asyncio.ensure_future(scheduler.run(range(100), server.run_row))
    await settle()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await settle()
    again = asyncio.ensure_future(scheduler.run([7], server.run_row))
    await settle()
    server.answer(7)
    assert await again == [70]
    assert limit.in_flight == 0


@on_loop
async def test_what_on_done_raises_ends_its_run_with_that_cause() -> None:
    """Nobody waits for ever; the run's other rows are cancelled."""
    limit = Limit(2)
    server = Server(limit)

    def on_done(result: int) -> None:
        raise ZeroDivisionError("counting failed")

    run = asyncio.ensure_future(Scheduler(limit).run(range(9), server.run_row, on_done))
    await settle()
    server.answer(0)
    with pytest.raises(ZeroDivisionError, match="counting failed"):
        await run
    await settle()
    assert limit.in_flight == 0
    assert server.num_opened < 9


@on_loop
async def test_what_on_start_raises_ends_its_own_run() -> None:
    """Not the row of another run, which freed the permit."""
    limit = Limit(1)
    server = Server(limit)
    scheduler = Scheduler(limit)

    def on_start() -> None:
        raise ZeroDivisionError("waking failed")

    good = asyncio.ensure_future(scheduler.run(range(9), server.run_row))
    bad = asyncio.ensure_future(scheduler.run(range(9), server.run_row, None, on_start))
    for _ in range(9):
        await settle()
        server.answer(next(iter(server.turns)))
    assert await good == [10 * row for row in range(9)]
    with pytest.raises(ZeroDivisionError, match="waking failed"):
        await bad


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration()], ids=repr)
def test_what_no_event_loop_survives_is_a_run_error(error: BaseException) -> None:
    """A row cannot end the loop that other runs need."""
    limit = Limit(2)

    def on_done(result: int) -> None:
        raise error

    async def run_row(row: int) -> int:
        return row

    async def run() -> None:
        with pytest.raises(RuntimeError, match=type(error).__name__):
            await Scheduler(limit).run([1], run_row, on_done)

    asyncio.run(run())


class Torn(Sequence[int]):
    """Rows of which the second cannot be had."""

    def __len__(self) -> int:
        return 3

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        yield 1
        raise OSError("the file is gone")


@on_loop
async def test_rows_that_cannot_be_iterated_end_their_own_run() -> None:
    """The row of another run, which happened to free the permit, is not touched."""
    limit = Limit(1)
    server = Server(limit)
    scheduler = Scheduler(limit)
    good = asyncio.ensure_future(scheduler.run(range(5, 20), server.run_row))
    torn = asyncio.ensure_future(scheduler.run(Torn(), server.run_row))
    for _ in range(15):
        await settle()
        server.answer(next(iter(server.turns)))
    assert await good == [10 * row for row in range(5, 20)]
    with pytest.raises(OSError, match="the file is gone"):
        await torn


@on_loop
async def test_a_scheduler_says_how_it_stands() -> None:
    """Started, open, waiting for a permit, in flight."""
    limit = Limit(2)
    server = Server(limit)
    scheduler = Scheduler(limit)
    run = asyncio.ensure_future(scheduler.run(range(100), server.run_row))
    await settle()
    stands = scheduler.statistics()
    assert (stands.num_runs, stands.num_in_flight) == (1, 2)
    assert stands.num_started == stands.num_open == 2 + stands.num_waiting
    server.answer(0)
    await settle()
    assert scheduler.statistics().num_started == stands.num_started + 1
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await settle()
    assert scheduler.statistics().num_open == 0
