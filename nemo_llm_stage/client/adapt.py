"""
Any client that a user brings becomes an `AsyncLLMClient`: asynchronous, with typed errors and a limit that holds.

Knows how clients look from outside: ours, a subclass of ours, a synchronous one, and any object with the same method
names, such as NeMo Curator's clients.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.client.endpoints.share import WorkerPlace
from nemo_llm_stage.client.limit import LoopLocal
from nemo_llm_stage.client.llm_client import AsyncLLMClient, ConversationFormatter, GenerationConfig
from nemo_llm_stage.core import Completion, Message
from nemo_llm_stage.errors import ConfigError

NUM_THREADS = 8
"""Requests in flight of a synchronous client that has no ``max_concurrent_requests`` of its own."""


def as_async_client(client: Any) -> AsyncLLMClient:
    """
    Return `client` as something with ``complete``, ``limit``, ``setup``, ``check`` and ``aclose``.

    An `AsyncLLMClient` is returned as it is, unless it overrides ``query_model`` or ``complete``. That one, a
    synchronous `LLMClient` and any object with ``setup`` and ``query_model`` are wrapped; they keep their own retries.
    A plain ``query_model`` is called from a pool of ``max_concurrent_requests`` threads, 8 where it has no such
    attribute.

    Raises:
        ConfigError: `client` is none of these.
    """
    if isinstance(client, type):
        raise ConfigError(f"client is the class {client.__name__}; make one: {client.__name__}(…).")
    if isinstance(client, AsyncLLMClient) and _keeps_the_loop(type(client)):
        return client
    if callable(getattr(client, "query_model", None)) and callable(getattr(client, "setup", None)):
        return ForeignClient(client)
    raise ConfigError(
        f"client is a {type(client).__name__}; it must have setup() and query_model(), as an AsyncLLMClient has."
    )


def _keeps_the_loop(kind: type[AsyncLLMClient]) -> bool:
    """Whether a subclass leaves retries and limit to the base class."""
    return kind.query_model is AsyncLLMClient.query_model and kind.complete is AsyncLLMClient.complete


class ForeignClient(AsyncLLMClient):
    """
    A client known only by its ``query_model``.

    `limit` is this wrapper's and is held around each call, so its numbers are true whatever the client does inside. A
    call that waits between retries of its own keeps its permit.

    Args:
        client: Has ``setup`` and ``query_model``, plain or ``async``.
    """

    _runtime_attributes = AsyncLLMClient._runtime_attributes | {"_pools"}  # noqa: SLF001 - ours, one class up
    _pools: LoopLocal[ThreadPoolExecutor] | None = None

    def __init__(self, client: Any) -> None:
        own = getattr(client, "max_concurrent_requests", None)
        super().__init__(own if isinstance(own, int) and own > 0 else NUM_THREADS, max_retries=0, base_delay=0.0)
        self.client = client

    def setup(self) -> None:
        """Make the client ready."""
        self.client.setup()

    async def _query_model_impl(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> list[str]:
        """Make one call, in a thread where it would block."""

        def call() -> Any:
            return self.client.query_model(
                messages=messages,
                model=model,
                conversation_formatter=conversation_formatter,
                generation_config=generation_config,
            )

        if inspect.iscoroutinefunction(self.client.query_model):
            texts: list[str] = await call()
            return texts
        return await self._in_thread(call)

    async def _complete_impl(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None,
        generation_config: GenerationConfig,
    ) -> Completion:
        """Make one call; an AsyncLLMClient returns the whole answer."""
        if not isinstance(self.client, AsyncLLMClient):
            return await super()._complete_impl(
                messages=messages,
                model=model,
                conversation_formatter=conversation_formatter,
                generation_config=generation_config,
            )
        return await self.client.complete(
            messages=messages,
            model=model,
            conversation_formatter=conversation_formatter,
            generation_config=generation_config,
        )

    async def _in_thread(self, call: Callable[[], Any]) -> list[str]:
        if self._pools is None:  # one for each loop: a forked child has a new loop, and none of the parent's threads
            self._pools = LoopLocal(
                lambda: ThreadPoolExecutor(self.max_concurrent_requests, thread_name_prefix="llm-client")
            )
        texts: list[str] = await asyncio.get_running_loop().run_in_executor(self._pools.get(), call)
        return texts

    async def check(self, model: str) -> None:
        """Let the client check, if it can."""
        if isinstance(self.client, AsyncLLMClient):
            await self.client.check(model)

    def take_place(self, place: WorkerPlace) -> None:
        """Let the client be that of one of several workers."""
        if isinstance(self.client, AsyncLLMClient):
            self.client.take_place(place)

    def endpoint_statuses(self) -> tuple[EndpointStatus, ...]:
        """Return how the client's servers stand, if it counts."""
        return self.client.endpoint_statuses() if isinstance(self.client, AsyncLLMClient) else ()

    async def aclose(self) -> None:
        """Close the client, if it can be closed; the threads end with their calls."""
        pool = None if self._pools is None else self._pools.pop()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        close: Callable[[], Awaitable[None]] | None = getattr(self.client, "aclose", None)
        if inspect.iscoroutinefunction(close):
            await close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.client!r})"
