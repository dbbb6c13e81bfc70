"""
Identical requests are sent once.

Lives on one event loop, shared by all partitions of a worker. Knows keys and completions.
"""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from sys import getsizeof
from typing import Any

from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import RequestError

MAX_BYTES = 32 << 20
"""Memory for finished answers, roughly; the least recently used are forgotten first."""

BYTES_PER_ANSWER = 1000
"""What an answer takes beside its texts: measured with tracemalloc, 0.8 to 1.1 kB."""

BYTES_PER_OBJECT = 100
"""What each object within ``logprobs`` takes, roughly."""


_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class MemoStatistics:
    """
    How much a memo keeps.

    Attributes:
        num_finished: Answers.
        num_bytes: Their memory, roughly.
        num_in_flight: Requests whose answers may be shared when they come.
    """

    num_finished: int
    num_bytes: int
    num_in_flight: int


class Memo:
    """
    Shares one answer among rows with the very same request, while it is in flight and for a while after.

    Args:
        max_bytes: Memory for finished answers, roughly.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._finished: OrderedDict[str, Completion] = OrderedDict()
        self._in_flight: dict[str, asyncio.Future[Completion]] = {}

    async def get(self, key: str, fetch: Callable[[], Awaitable[Completion]]) -> tuple[Completion, bool]:
        """
        Return the answer to the request with this key, and whether it was another row's request.

        If the row that sent the request is cancelled, one of those that wait for its answer sends it in its place.

        Args:
            key: Equal for identical requests.
            fetch: Gets the answer from the server; called unless another row does so.

        Raises:
            Exception: What `fetch` raised, for each row that waited for it. A RequestError is then marked as shared:
                it counts once, with the row that sent the request. A later row sends the request again.
        """
        while True:
            if key in self._finished:
                self._finished.move_to_end(key)
                return self._finished[key], True
            in_flight = self._in_flight.get(key)
            if in_flight is None:
                return await self._fetch(key, fetch), False
            await asyncio.wait([in_flight])
            if in_flight.cancelled():
                continue
            error = in_flight.exception()
            if error is None:
                return in_flight.result(), True
            raise _shared(error)

    async def _fetch(self, key: str, fetch: Callable[[], Awaitable[Completion]]) -> Completion:
        future = self._in_flight[key] = asyncio.get_running_loop().create_future()
        try:
            completion = await fetch()
        except Exception as error:
            future.set_exception(error)
            future.exception()  # most often no other row waits for it, which is no mistake
            raise
        except BaseException:  # cancelled, or the process ends: whoever waits must not wait for ever
            future.cancel()
            raise
        else:
            future.set_result(completion)
            self.keep(key, completion)
            return completion
        finally:
            del self._in_flight[key]

    def keep(self, key: str, completion: Completion) -> None:
        """Let later rows share an answer that came from elsewhere."""
        before = self._finished.pop(key, None)
        self._num_bytes += _size(completion) - (0 if before is None else _size(before))
        self._finished[key] = completion
        while self._num_bytes > self._max_bytes:
            _, oldest = self._finished.popitem(last=False)
            self._num_bytes -= _size(oldest)

    def statistics(self) -> MemoStatistics:
        """Return how much is kept."""
        return MemoStatistics(len(self._finished), self._num_bytes, len(self._in_flight))


def _shared(error: BaseException) -> BaseException:
    """Return a failed request's error as it is for the rows that only waited: nothing was sent for them."""
    if not isinstance(error, RequestError):
        return error
    shared = copy.copy(error)
    shared.failures = ()
    shared.is_shared = True
    return shared


def _size(completion: Completion) -> int:
    size = BYTES_PER_ANSWER
    for text in completion.texts + completion.reasoning:
        size += 0 if text is None else getsizeof(text)
    if completion.logprobs:
        size += BYTES_PER_OBJECT * sum(map(_num_logprobs, completion.logprobs))
    return size


def _num_logprobs(value: Any, depth: int = 0) -> int:
    """Return how many objects there are in the ``logprobs`` of a choice, lists within lists included."""
    if depth == _MAX_DEPTH or not isinstance(value, dict | list):
        return 1
    items = value.values() if isinstance(value, dict) else value
    return 1 + sum(_num_logprobs(item, depth + 1) for item in items)
