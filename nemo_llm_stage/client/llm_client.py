"""
The client interface: one request becomes one completion.

Names, parameters, defaults and meaning are those of NeMo Curator's `nemo_curator.models.client.llm_client`, so code
written for one runs on the other. Beside `query_model`, which returns texts, stands `complete`, which returns the whole
`Completion`; both share one limit and one retry loop. Knows nothing of rows, files or Ray.
"""

from __future__ import annotations

import functools
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from nemo_llm_stage.client.clock import SYSTEM_CLOCK, Clock
from nemo_llm_stage.client.curators import SEMAPHORE, SEMAPHORE_LOOP, count_as_curators
from nemo_llm_stage.client.errors.foreign import as_request_error
from nemo_llm_stage.client.generation import ConversationFormatter, GenerationConfig
from nemo_llm_stage.client.limit import HELD, Limit, LoopLocal, Permit
from nemo_llm_stage.client.outcome import completion_of_texts
from nemo_llm_stage.client.retry import RetryPolicy, Server, send
from nemo_llm_stage.client.server_view import ServerView
from nemo_llm_stage.client.sync_client import LLMClient
from nemo_llm_stage.core import Completion, Message
from nemo_llm_stage.errors import ConfigError, LLMStageError, RequestError

__all__ = ["AsyncLLMClient", "ConversationFormatter", "GenerationConfig", "LLMClient", "completion_of_texts"]

T = TypeVar("T")

logger = logging.getLogger(__name__)
"""A name that users' tests patch, as they do in NeMo Curator's module."""


_policy = functools.lru_cache(maxsize=64)(RetryPolicy)


class AsyncLLMClient(ServerView, ABC):
    """
    An asynchronous client with a limit and retries of its own.

    A subclass writes `setup` and `_query_model_impl` (one attempt, no retry, no limit); a stage takes it as it is. One
    that knows more than texts overrides `_complete_impl` instead.

    The limit holds for this client on each event loop; a permit is held for one attempt and never while waiting for
    the next. The client can be pickled before and after `setup`, and used from several event loops in turn.

    Args:
        max_concurrent_requests: Most attempts in flight at once.
        max_retries: Retries for transient failures; 3 means at most 4 sends.
        base_delay: Seconds; the pause before retry k is uniform in ``[0, min(60, base_delay · 2^(k-1))]``, or what the
            server asks for in ``Retry-After``.

    Attributes:
        clock: Time and sleep of the retries.
    """

    clock: Clock = SYSTEM_CLOCK
    _limits: LoopLocal[Limit] | None = None
    _semaphore, _semaphore_loop = SEMAPHORE, SEMAPHORE_LOOP

    _runtime_attributes: frozenset[str] = frozenset({"_limits"})
    """Names of the attributes that live in one process; pickling leaves them out."""

    def __init__(self, max_concurrent_requests: int = 5, max_retries: int = 3, base_delay: float = 1.0) -> None:
        if max_concurrent_requests < 1:
            raise ConfigError(f"max_concurrent_requests is {max_concurrent_requests}; it must be at least 1.")
        if max_retries < 0 or base_delay < 0:
            raise ConfigError("max_retries and base_delay must not be negative.")
        count_as_curators(AsyncLLMClient)
        self.max_concurrent_requests = max_concurrent_requests
        self.max_retries = max_retries
        self.base_delay = base_delay

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """
        Route each pair of methods through the one that a subclass overrides.

        If it overrides only `_query_model_impl`, `_complete_impl` calls that; `_complete_under` calls `_complete_impl`
        in the same way, and `complete` calls `query_model`.
        """
        super().__init_subclass__(**kwargs)
        if "_query_model_impl" in cls.__dict__ and "_complete_impl" not in cls.__dict__:
            cls._complete_impl = AsyncLLMClient._complete_impl  # type: ignore[method-assign]
        if "_complete_impl" in cls.__dict__ and "_complete_under" not in cls.__dict__:
            cls._complete_under = AsyncLLMClient._complete_under  # type: ignore[method-assign]
        if "query_model" in cls.__dict__ and "complete" not in cls.__dict__:
            cls.complete = AsyncLLMClient._complete_by_query_model  # type: ignore[method-assign]

    @abstractmethod
    def setup(self) -> None:
        """Make the client ready: read keys, open what must be open. Called in the process that will use it."""

    @abstractmethod
    async def _query_model_impl(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> list[str]:
        """Make one attempt, without retry or limit. `generation_config` is always a GenerationConfig here."""

    async def query_model(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> list[str]:
        """
        Return one text per choice, in the server's order, with retries and under the limit.

        Args:
            messages: Chat turns, oldest first.
            model: The model's name on the server.
            conversation_formatter: Renders the turns for a base model.
            generation_config: None means the defaults.

        Raises:
            Exception: What the last attempt raised: at once where asking again cannot help, else after the retries.
        """
        config, turns = GenerationConfig.of(generation_config), list(messages)

        def attempt(permit: Permit) -> Coroutine[Any, Any, Completion]:
            return self._complete_under(permit, turns, model, conversation_formatter, config)

        return list((await send(attempt, self.limit, self.retry_policy(), clock=self.clock))[0].texts)

    async def complete(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> Completion:
        """
        Return the whole answer, with retries and under the limit.

        Raises:
            TransientError: The retries are used up.
            RowError: This request can never succeed.
            FatalError: No request can succeed here.
            ConfigError: The client's settings or the generation_config cannot work.
        """
        config = GenerationConfig.of(generation_config)
        return await self.fetch(list(messages), model, conversation_formatter, config, policy=self.retry_policy())

    async def fetch(
        self,
        messages: list[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None,
        generation_config: GenerationConfig,
        *,
        policy: RetryPolicy,
        server: Server | None = None,
    ) -> Completion:
        """
        Return the whole answer as `complete` does, with another policy than the client's own.

        Args:
            messages: Chat turns, oldest first.
            model: The model's name on the server.
            conversation_formatter: Renders the turns for a base model.
            generation_config: Parameters.
            policy: How often and for how long the request is sent again.
            server: Told of every outcome; see `retry.send`.
        """

        def attempt(permit: Permit) -> Coroutine[Any, Any, Completion]:
            return self._complete_under(permit, messages, model, conversation_formatter, generation_config)

        completion, failures = await send(
            attempt, self.limit, policy, clock=self.clock, server=server, as_error=self._as_request_error
        )
        return completion if not failures else completion.after(failures)

    def retry_policy(self, give_up_after_s: float = 0.0) -> RetryPolicy:
        """Return the policy of this client's settings, for requests that may be given up after so many seconds."""
        return _policy(self.max_retries, self.base_delay, give_up_after_s)

    async def check(self, model: str) -> None:
        """
        Check, before anything is paid for, that this server has `model`. The base class cannot tell.

        Raises:
            FatalError: The key or the model is wrong.
            TransientError: The server cannot be reached.
        """

    async def aclose(self) -> None:
        """Close what is open on the running event loop. Safe to call twice; the client can be used again after."""

    @property
    def limit(self) -> Limit:
        """The running event loop's limit."""
        if self._limits is None:
            self._limits = LoopLocal(self._make_limit)
        return self._limits.get()

    def _make_limit(self) -> Limit:
        return Limit(self.max_concurrent_requests)

    async def _complete_under(
        self,
        permit: Permit,
        messages: list[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None,
        generation_config: GenerationConfig,
    ) -> Completion:
        """Make one attempt under `permit`."""
        with _held(permit):
            return await self._complete_impl(
                messages=messages,
                model=model,
                conversation_formatter=conversation_formatter,
                generation_config=generation_config,
            )

    async def _complete_impl(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None,
        generation_config: GenerationConfig,
    ) -> Completion:
        """Make one attempt and return all that is known of the answer: here the texts of `_query_model_impl`."""
        started_monotonic_s = time.monotonic()
        texts = await self._query_model_impl(
            messages=messages,
            model=model,
            conversation_formatter=conversation_formatter,
            generation_config=generation_config,
        )
        return completion_of_texts(texts, latency_s=time.monotonic() - started_monotonic_s)

    async def _complete_by_query_model(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> Completion:
        """`complete` of a subclass that overrides `query_model` itself: its limit and retries are its own."""
        started_monotonic_s = time.monotonic()
        try:
            texts = await self.query_model(
                messages=messages,
                model=model,
                conversation_formatter=conversation_formatter,
                generation_config=generation_config,
            )
        except LLMStageError:
            raise
        except Exception as error:
            raise self._as_request_error(error) from error
        return completion_of_texts(texts, latency_s=time.monotonic() - started_monotonic_s)

    def _as_request_error(self, error: Exception) -> RequestError:
        """Return the typed error for what an attempt raised."""
        return as_request_error(error)

    async def _execute_with_retries(self, request: Callable[[], Awaitable[T]]) -> T:
        """
        Return what `request()` returns, sent again after transient failures.

        Raises:
            Exception: What the last call raised.
        """

        async def attempt(permit: Permit) -> T:
            with _held(permit):
                return await request()

        return (await send(attempt, self.limit, self.retry_policy(), clock=self.clock))[0]

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what lives in this process."""
        return {name: value for name, value in self.__dict__.items() if name not in self._runtime_attributes}


@contextmanager
def _held(permit: Permit) -> Iterator[None]:
    """Let what the block calls find `permit` in `HELD`."""
    token = HELD.set(permit)
    try:
        yield
    finally:
        HELD.reset(token)
