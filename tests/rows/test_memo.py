"""Identical requests are sent once, whatever becomes of the rows that wait for their answer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import BadRequestError
from nemo_llm_stage.rows.memo import Memo


def test_an_error_counts_with_the_row_that_sent_the_request() -> None:
    """All that wait for it get it, marked as shared and without sends of their own."""

    async def scenario() -> list[Any]:
        async def fetch() -> Completion:
            await asyncio.sleep(0)
            error = BadRequestError("no", status=400)
            error.failures = ("bad_request",)
            raise error

        return await asyncio.gather(*(memo.get("key", fetch) for _ in range(3)), return_exceptions=True)

    memo = Memo()
    errors = asyncio.run(scenario())
    assert [(str(error), error.status) for error in errors] == [("no", 400)] * 3
    assert sorted((error.is_shared, error.attempts) for error in errors) == [(False, 1), (True, 0), (True, 0)]


def test_what_is_kept_is_bounded_with_all_that_comes_with_an_answer() -> None:
    """Reasoning and log probabilities take memory too; the least recently used go first."""
    memo = Memo(max_bytes=100_000)
    logprobs = ({"content": [{"token": "a", "logprob": -0.1, "top_logprobs": []}] * 100},)
    for number in range(50):
        memo.keep(str(number), Completion(("x" * 100,), reasoning=("y" * 5_000,), logprobs=logprobs))
        assert memo.statistics().num_bytes <= 100_000
    assert 1 <= memo.statistics().num_finished <= 6
    memo.keep("huge", Completion(("x" * 1_000_000,)))
    assert memo.statistics().num_bytes <= 100_000


class MemoMachine(RuleBasedStateMachine):
    """Rows with few distinct requests come and are cancelled, and their fetches end well or not, in any order."""

    keys = strategies.sampled_from("abc")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.memo = Memo(max_bytes=2_500)
        self.fetches: dict[str, asyncio.Future[Completion]] = {}
        self.rows: list[tuple[str, asyncio.Task[Any]]] = []

    async def fetch(self, key: str) -> Completion:
        assert key not in self.fetches, "one row at a time sends a request"
        self.fetches[key] = self.loop.create_future()
        try:
            return await self.fetches[key]
        finally:
            del self.fetches[key]

    @rule(key=keys)
    def come(self, key: str) -> None:
        self.rows.append((key, self.loop.create_task(self.memo.get(key, lambda: self.fetch(key)))))
        self.turn()

    @rule(key=keys, is_good=strategies.booleans())
    def end(self, key: str, is_good: bool) -> None:
        if key in self.fetches and not self.fetches[key].done():
            if is_good:
                self.fetches[key].set_result(Completion((key,)))
            else:
                self.fetches[key].set_exception(BadRequestError(key))
        self.turn()

    @rule(data=strategies.data())
    def cancel(self, data: Any) -> None:
        alive = [task for _, task in self.rows if not task.done()]
        if alive:
            data.draw(strategies.sampled_from(alive)).cancel()
        self.turn()

    def turn(self) -> None:
        for _ in range(8):
            self.loop.run_until_complete(asyncio.sleep(0))

    @invariant()
    def rows_that_wait_have_a_request_in_flight(self) -> None:
        waiting = {key for key, task in self.rows if not task.done()}
        assert waiting == set(self.fetches)

    @invariant()
    def rows_get_the_answer_to_their_request(self) -> None:
        for key, task in self.rows:
            if task.done() and not task.cancelled():
                error = task.exception()
                assert (task.result()[0].texts[0] if error is None else str(error)) == key

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.memo.statistics().num_bytes <= 2_500

    def teardown(self) -> None:
        for _, task in self.rows:
            task.cancel()
        self.turn()
        self.loop.close()


TestMemoMachine = MemoMachine.TestCase
TestMemoMachine.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt])
def test_no_row_waits_for_an_answer_that_nobody_fetches(kind: type[BaseException]) -> None:
    """However the first row ended, the next sends the request itself."""

    async def first() -> Completion:
        await asyncio.sleep(0)
        raise kind

    async def second() -> Completion:
        return Completion(("mine",))

    async def scenario() -> Any:
        async def begin() -> None:
            with contextlib.suppress(kind):
                await memo.get("key", first)

        task = asyncio.create_task(begin())
        await asyncio.sleep(0)
        waiting = asyncio.create_task(memo.get("key", second))
        await asyncio.wait_for(asyncio.gather(task, waiting), 5)
        return waiting.result()

    memo = Memo()
    assert asyncio.run(scenario()) == (Completion(("mine",)), False)
