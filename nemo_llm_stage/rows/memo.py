"""
Identical requests are asked once.

Lives on one event loop, shared by all partitions of a worker. Knows keys and completions.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from nemo_llm_stage.core import Completion

MAX_BYTES = 32 << 20
"""Kept of finished answers, about; beyond it the ones not asked for longest are forgotten."""

BYTES_PER_ANSWER = 1000
"""What an answer takes beside its text: measured with tracemalloc, 0.8 to 1.1 kB."""


class Memo:
    """
    Shares one answer among rows that ask the very same thing, while it is under way and for a while after.

    Args:
        max_bytes: Of finished answers to keep, about.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._finished: OrderedDict[str, Completion] = OrderedDict()
        self._under_way: dict[str, asyncio.Future[Completion]] = {}

    async def get(self, key: str, ask: Callable[[], Awaitable[Completion]]) -> tuple[Completion, bool]:
        """
        Return the answer to the request with this key, and whether another row had asked for it.

        Args:
            key: Equal for identical requests.
            ask: Asks the server; called only if no other row has.

        Raises:
            Exception: What `ask` raised, for every row that waited for it. A later row asks again.
        """
        while True:
            if key in self._finished:
                self._finished.move_to_end(key)
                return self._finished[key], True
            under_way = self._under_way.get(key)
            if under_way is None:
                return await self._ask(key, ask), False
            await asyncio.wait([under_way])
            if not under_way.cancelled():  # else that row was abandoned, and this one takes its place
                return under_way.result(), True

    async def _ask(self, key: str, ask: Callable[[], Awaitable[Completion]]) -> Completion:
        future = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            completion = await ask()
        except asyncio.CancelledError:
            future.cancel()
            raise
        except Exception as error:
            future.set_exception(error)
            future.exception()  # mostly nobody else waits for it, which is no mistake
            raise
        else:
            future.set_result(completion)
            self.keep(key, completion)
            return completion
        finally:
            del self._under_way[key]

    def keep(self, key: str, completion: Completion) -> None:
        """Let later rows share an answer that came from elsewhere."""
        before = self._finished.pop(key, None)
        self._num_bytes += _size(completion) - (0 if before is None else _size(before))
        self._finished[key] = completion
        while self._num_bytes > self._max_bytes:
            _, oldest = self._finished.popitem(last=False)
            self._num_bytes -= _size(oldest)


def _size(completion: Completion) -> int:
    return BYTES_PER_ANSWER + sum(map(len, completion.texts))
