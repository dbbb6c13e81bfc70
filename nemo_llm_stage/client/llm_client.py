"""
The client interface: one request becomes one completion.

Names, parameters, defaults and meaning are those of NeMo Curator's `nemo_curator.models.client.llm_client`, so code
written for one runs on the other. Beside `query_model`, which returns texts, stands `complete`, which returns the whole
`Completion`; both share one limit and one retry loop. Knows nothing of rows, files or Ray.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

from nemo_llm_stage.client.curators import count_as_curators
from nemo_llm_stage.client.errors.foreign import as_request_error, is_transient
from nemo_llm_stage.client.generation import ConversationFormatter, GenerationConfig
from nemo_llm_stage.client.limit import Limit, LoopLocal
from nemo_llm_stage.client.outcome import completion_of_texts, note_failures
from nemo_llm_stage.client.retry import WaitBackoff
from nemo_llm_stage.core import Completion, Message
from nemo_llm_stage.errors import ConfigError, LLMStageError, RequestError

__all__ = ["AsyncLLMClient", "ConversationFormatter", "GenerationConfig", "LLMClient", "completion_of_texts"]

T = TypeVar("T")

logger = logging.getLogger(__name__)
"""A name that users' tests patch, as they do in NeMo Curator's module."""


class LLMClient(ABC):
    """A synchronous client. The stage calls its `query_model` from a pool of threads."""

    @abstractmethod
    def setup(self) -> None:
        """Make the client ready: read keys, open what must be open. Called in the process that will use it."""

    @abstractmethod
    def query_model(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> list[str]:
        """
        Return one text per choice, in the server's order.

        Args:
            messages: Chat turns, oldest first.
            model: The model's name on the server.
            conversation_formatter: Renders the turns for a base model.
            generation_config: None means the defaults.
        """


class AsyncLLMClient(ABC):
    """
    An asynchronous client with a limit and retries of its own.

    A subclass writes `setup` and `_query_model_impl` (one attempt, no retry, no limit) and is a full citizen of the
    stage. One that can tell more than texts overrides `_complete_impl` instead.

    The limit holds for this client on each event loop; a permit is held for one attempt and never while waiting for
    the next. The client can be pickled before and after `setup`, and used from several event loops in turn.

    Args:
        max_concurrent_requests: Most attempts in flight at once.
        max_retries: Sends after the first one, for failures that may pass; 3 means at most 4 sends.
        base_delay: Seconds; the wait before retry k is uniform in ``[0, min(60, base_delay · 2^(k-1))]``, or what the
            server asks for in ``Retry-After``.
    """

    _runtime_attributes: frozenset[str] = frozenset({"_limits"})
    """Names of attributes that live in one process: left behind by pickling."""

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
        """Let the most derived of the paired methods win, so that an override is never passed by."""
        super().__init_subclass__(**kwargs)
        if "_query_model_impl" in cls.__dict__ and "_complete_impl" not in cls.__dict__:
            cls._complete_impl = AsyncLLMClient._complete_impl  # type: ignore[method-assign]
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
        completion = await self._complete(messages, model, conversation_formatter, generation_config)
        return list(completion.texts)

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
        try:
            return await self._complete(messages, model, conversation_formatter, generation_config)
        except LLMStageError:
            raise
        except Exception as error:
            request_error = self._as_request_error(error)
            request_error.failures = getattr(error, "_failures", (request_error.kind,))
            raise request_error from error

    async def check(self, model: str) -> None:  # noqa: B027 - a hook: not every server can tell
        """
        Find out, before anything is paid for, whether `model` can be asked here. The base class cannot tell.

        Raises:
            FatalError: The key or the model is wrong.
            TransientError: The server cannot be reached.
        """

    async def aclose(self) -> None:  # noqa: B027 - a hook: not every client holds something
        """Close what is open on the running event loop. Safe to call twice; the client can be used again after."""

    @property
    def limit(self) -> Limit:
        """The running event loop's limit."""
        limits: LoopLocal[Limit] | None = self.__dict__.get("_limits")
        if limits is None:
            limits = self._limits = LoopLocal(lambda: Limit(self.max_concurrent_requests))
        return limits.get()

    async def _complete_impl(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None,
        generation_config: GenerationConfig,
    ) -> Completion:
        """Make one attempt and tell all that is known of it. Here: the texts of `_query_model_impl`."""
        started_monotonic_s = time.monotonic()
        texts = await self._query_model_impl(
            messages=messages,
            model=model,
            conversation_formatter=conversation_formatter,
            generation_config=generation_config,
        )
        return completion_of_texts(texts, latency_s=time.monotonic() - started_monotonic_s)

    async def _complete(
        self,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None,
        generation_config: GenerationConfig | dict[str, Any] | None,
    ) -> Completion:
        config = GenerationConfig.of(generation_config)
        turns = list(messages)
        num_attempts = 0

        def attempt() -> Awaitable[Completion]:
            nonlocal num_attempts
            num_attempts += 1
            return self._complete_impl(
                messages=turns, model=model, conversation_formatter=conversation_formatter, generation_config=config
            )

        completion = await self._execute_with_retries(attempt)
        if num_attempts == 1:
            return completion
        return replace(completion, attempts=num_attempts)

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
        Return what `request()` returns, asked again while it fails in a way that may pass.

        Raises:
            Exception: What the last call raised.
        """
        limit = self.limit
        try:
            async with limit:
                return await request()
        except Exception as error:
            note_failures(error, [as_request_error(error).kind])
            if self.max_retries == 0 or not is_transient(error):
                raise
            first_error = error
        # tenacity costs 40 µs a call (tenacity 9.2, one 2026 core): rows that succeed at once do not pay it.
        return await self._retry_after(first_error, request, limit)

    async def _retry_after(self, first_error: Exception, request: Callable[[], Awaitable[T]], limit: Limit) -> T:
        replay = [first_error]
        failures: list[str] = []

        async def attempt() -> T:
            try:
                if replay:
                    raise replay.pop()
                async with limit:
                    return await request()
            except Exception as error:
                failures.append(as_request_error(error).kind)
                raise

        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.max_retries + 1),
            wait=WaitBackoff(self.base_delay),
            retry=retry_if_exception(is_transient),
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except Exception as error:
            note_failures(error, failures)
            raise

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what lives in this process."""
        return {name: value for name, value in self.__dict__.items() if name not in self._runtime_attributes}
