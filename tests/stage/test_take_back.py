"""Rows that are not sent can be taken back; those in flight stay, and no permit is lost."""

from __future__ import annotations

import asyncio
from typing import Any

from nemo_llm_stage import AsyncHTTPClient, LLMStage, MultiColumnStage
from nemo_llm_stage.client.limit import Limit
from nemo_llm_stage.core import RowResult
from nemo_llm_stage.stage.hand import Hand, portable
from nemo_llm_stage.stage.scheduler import Scheduler
from nemo_llm_stage.testing import SimulatedServer


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def run_and_take_back(*, drops_waiting: bool, other_has_hand: bool) -> tuple[list[int], list[Any], list[Any]]:
    """Run 40 rows and another 2 under a limit of 4; return what came back, and the results of both."""
    limit, hand, answered = Limit(4), Hand(), asyncio.Event()
    num_started = 0

    async def run_row(row: int) -> int:
        async with limit:
            await answered.wait()
        return row * 10

    def on_start() -> None:
        nonlocal num_started
        num_started += 1

    scheduler = Scheduler(limit)
    rows = asyncio.ensure_future(scheduler.run(range(40), run_row, on_start=on_start, hand=hand))
    await settle()
    other = asyncio.ensure_future(scheduler.run([40, 41], run_row, hand=Hand() if other_has_hand else None))
    await settle()
    scheduler.take_back(drops_waiting=drops_waiting)
    await settle()
    answered.set()
    results = await rows
    others = await other
    assert num_started == 40
    assert (limit.in_flight, limit.num_waiting) == (0, 0)
    return sorted(hand.take()), results, others


def test_what_is_not_sent_comes_back() -> None:
    """Also rows that wait for a permit."""
    back, results, others = asyncio.run(run_and_take_back(drops_waiting=True, other_has_hand=True))
    assert back == list(range(4, 40))
    assert results == [0, 10, 20, 30] + 36 * [None]
    assert others == [None, None]


def test_rows_without_a_hand_stay_and_so_does_who_waits() -> None:
    """Nobody could take them."""
    back, results, others = asyncio.run(run_and_take_back(drops_waiting=True, other_has_hand=False))
    assert back == list(range(8, 40))
    assert results[:8] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert others == [400, 410]


def test_a_stage_gives_back_by_places() -> None:
    """The outcome of a row that came back is empty."""
    texts = [f"{'one beginning ' * 20 if i % 2 else 'another one ' * 20} {i}" for i in range(200)]
    with SimulatedServer(service_time_s=0.3, max_num_seqs=4) as server:
        client = AsyncHTTPClient(server.base_url, max_concurrent_requests=4)
        stage = LLMStage(client=client, model="sim", prompt="{{ text }}", output_column="x")
        hand = Hand()
        future = stage.submit([{"text": text} for text in texts], hand=hand)
        while server.stats.in_flight < 4:
            pass
        assert stage.runtime is not None
        stage.runtime.take_back()
        outcomes = future.result()
        stage.close()
        assert server.stats.num_requests == 4
    back = hand.take()
    assert len(back) == 196
    for place, outcome in enumerate(outcomes):
        assert (not outcome) == (place in back)


def test_a_row_in_flight_tells_the_columns_that_it_has() -> None:
    """Another worker asks only for those that it lacks; here the row is dropped then, and its request cancelled."""

    def service_time_s(body: dict[str, Any]) -> float:
        return 3600.0 if body["messages"][-1]["content"].startswith("Repeat") else 0.0

    with (
        SimulatedServer(service_time_s=service_time_s) as slow,
        SimulatedServer(service_time_s=service_time_s) as slow_too,
        SimulatedServer() as quick,
    ):
        prompts = {"b": "Repeat {{ a }}", "a": "Say {{ text }}", "c": "Sing {{ text }}"}

        def make(*servers: SimulatedServer) -> MultiColumnStage:
            client = AsyncHTTPClient([server.base_url for server in servers], max_concurrent_requests=4)
            return MultiColumnStage(
                [LLMStage(client=client, model="sim", prompt=prompts[name], output_column=name) for name in prompts]
            )

        def num_asked(what: str) -> int:
            return sum(getattr(server.stats, what) for server in (slow, slow_too))

        stage, other, hand = make(slow, slow_too), make(quick), Hand()
        rows = [{"text": "a word"}]
        future = stage.submit(rows, hand=hand)
        while (num_asked("num_requests"), num_asked("in_flight")) != (3, 1):
            pass
        assert stage.runtime is not None
        after_s = {slow.base_url: 0.0, slow_too.base_url: 0.0}
        [row] = stage.runtime.overdue(after_s, 9)
        assert (row.place, set(row.known), row.num_missing) == (0, {"a", "c"}, 1)
        assert row.url in after_s
        assert stage.runtime.overdue(after_s, 0) == []
        [outcome] = other.submit(rows, known=[row.known], avoids=row.url).result()
        assert quick.stats.num_requests == 1
        assert (outcome["a"], outcome["c"]) == (row.known["a"], row.known["c"])
        assert str(outcome["b"].value).endswith(str(outcome["a"].value)[-20:])
        hand.told[0] = {"c"}  # as if "a" had come after it was told
        stage.runtime.drop(hand, {0})
        assert future.result() == [{}]
        assert hand.dropped == {0: {"a": row.known["a"]}}
        while num_asked("in_flight"):
            pass
        stage.close()
        other.close()


def test_results_that_cannot_be_pickled_are_not_told() -> None:
    """Their columns are asked for again."""
    text = {"a": RowResult("an answer")}
    assert portable(text) == text
    assert portable({**text, "b": RowResult(lambda: None)}) == {}
