"""
The clients on the openai SDK, for whatever needs the SDK: its own authentication, a provider's subclass of it.

Names, parameters and behaviour are those of NeMo Curator's `nemo_curator.models.client.openai_client`. The SDK is
imported when a client is set up. What an answer is worth is decided by `wire`, as for every other client.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nemo_llm_stage.client.credentials import secrets_of_request
from nemo_llm_stage.client.http.loop_end import LoopEnd
from nemo_llm_stage.client.limit import LoopLocal
from nemo_llm_stage.client.llm_client import AsyncLLMClient, ConversationFormatter, GenerationConfig, LLMClient
from nemo_llm_stage.client.retry import ask_for_another_send
from nemo_llm_stage.client.sdk_answer import SDKClass, fetch, fetch_async
from nemo_llm_stage.client.sdk_check import check_of_sdk, is_sdk_client
from nemo_llm_stage.client.sdk_settings import SDKSettings
from nemo_llm_stage.client.server_check import CHECK_TIMEOUT_S, GREETING, ONE_TOKEN, check_all
from nemo_llm_stage.client.token_limit import TokenLimitNames
from nemo_llm_stage.client.wire import completion_of_answer
from nemo_llm_stage.core import Completion, Message
from nemo_llm_stage.errors import RequestError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI
    from openai.types.chat import ChatCompletion
else:
    AsyncOpenAI, OpenAI = SDKClass("AsyncOpenAI"), SDKClass("OpenAI")

logger = logging.getLogger(__name__)
"""Beside the SDK's two classes a name that users' tests patch, as they do in NeMo Curator's module."""


class OpenAIClient(SDKSettings, LLMClient):
    """
    The synchronous client. The SDK retries by itself: twice, unless ``max_retries`` says otherwise.

    Args:
        **kwargs: For ``openai.OpenAI``; ``timeout`` (seconds, default 120) is that of each request.

    Attributes:
        client: The SDK's client; there after `setup`, which the first request calls where nobody has.
    """

    client: OpenAI

    def __init__(self, **kwargs: Any) -> None:
        self.keep(kwargs)

    def setup(self) -> None:
        """
        Make the SDK's client.

        Raises:
            openai.OpenAIError: No key is given and the environment has none.
        """
        self.client = OpenAI(**self.sdk_kwargs(is_async=False))
        logger.debug("%s is set up", self)

    def query_model(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> list[str]:
        """
        Return one text per choice.

        Raises:
            openai.OpenAIError: The request failed, after the SDK's own retries.
            RequestError: There was an answer, but none to be used; see `wire.completion_of_answer`.
        """
        if not hasattr(self, "client"):
            self.setup()
        config = GenerationConfig.of(generation_config)
        kwargs = self.create_kwargs(messages, model, conversation_formatter, config)
        secrets = secrets_of_request(self.secrets, config.extra_kwargs)
        try:
            whole = fetch(self.client, {**kwargs, "timeout": self.sdk_timeout(kwargs["timeout"])})
            return list(secrets.cleaned(completion_of_answer(whole)).texts)
        except Exception as error:
            secrets.clean(error)
            raise

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the SDK's client, which holds sockets, and secrets that were read here."""
        return {name: value for name, value in self.__dict__.items() if name != "client"} | {"_secrets": None}


class AsyncOpenAIClient(SDKSettings, AsyncLLMClient):
    """
    The asynchronous client. It alone retries: the SDK's own retries are switched off.

    `query_model` raises the SDK's errors as they are; `complete` raises this package's.

    Args:
        max_concurrent_requests: Most requests in flight at once.
        max_retries: Retries for transient failures.
        base_delay: Seconds; see `AsyncLLMClient`.
        **kwargs: For ``openai.AsyncOpenAI``; ``timeout`` (seconds, default 120) is that of each request.
    """

    _runtime_attributes = AsyncLLMClient._runtime_attributes | {"_clients", "_ends", "_unbound"}  # noqa: SLF001
    _unbound: AsyncOpenAI | None = None
    _clients: LoopLocal[AsyncOpenAI] | None = None
    _ends: LoopLocal[LoopEnd] | None = None

    def __init__(
        self, max_concurrent_requests: int = 5, max_retries: int = 3, base_delay: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(max_concurrent_requests, max_retries, base_delay)
        self.keep(kwargs)
        self._token_limit = TokenLimitNames()

    def setup(self) -> None:
        """
        Make the SDK's client. Safe to call twice; the first request calls it where nobody has.

        Raises:
            openai.OpenAIError: No key is given and the environment has none.
        """
        self._unbound = self._make_sdk_client()
        logger.debug("%s is set up", self)
        self._clients = clients = LoopLocal(self._take_sdk_client)
        self._ends = LoopLocal(lambda: LoopEnd(clients.get().close))

    @property
    def client(self) -> AsyncOpenAI:
        """
        The SDK's client of the running event loop: connections cannot go from one loop to another.

        Raises:
            AttributeError: `setup` has not been called.
        """
        if self._clients is None:
            raise AttributeError(f"{type(self).__name__} has no client before setup().", name="client", obj=self)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._unbound = self._take_sdk_client()
            return self._unbound
        return self._clients.get()

    @client.setter
    def client(self, client: AsyncOpenAI) -> None:
        """Use this SDK client, on every loop."""
        self._clients = LoopLocal(lambda: client)
        self._unbound = client
        self._ends = None  # whoever brought it closes it

    async def query_model_response(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> ChatCompletion:
        """
        Return the SDK's own response, with retries and under the limit. It is never streamed.

        Raises:
            openai.OpenAIError: What the last attempt raised.
        """
        config = GenerationConfig.of(generation_config)
        kwargs = self.create_kwargs(list(messages), model, conversation_formatter, config) | {"stream": False}

        async def request() -> ChatCompletion:
            try:
                response: ChatCompletion = await self._sdk_client().chat.completions.create(
                    **kwargs | {"timeout": self.sdk_timeout(kwargs["timeout"])}
                )
            except Exception as error:
                self.secrets.clean(error)
                raise
            return response

        return await self._execute_with_retries(request)

    async def _complete_impl(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None,
        generation_config: GenerationConfig,
    ) -> Completion:
        """Make one attempt; ask for another with another name for ``max_tokens``, or a new key, where that may help."""
        client = self._sdk_client()
        if self._ends is not None:
            await self._ends.get().watch()
        config = self._token_limit.put_into(generation_config, model)
        kwargs = self.create_kwargs(messages, model, conversation_formatter, config)
        secrets, key = secrets_of_request(self.secrets, config.extra_kwargs), client.api_key
        try:
            return secrets.cleaned(await self._send(client, kwargs))
        except Exception as error:
            secrets.clean(error)
            typed = self._as_request_error(error)
            if self._token_limit.learn(typed, config, model) or self.renew_key(client, key, typed):
                ask_for_another_send(error)
            raise

    async def _send(self, client: AsyncOpenAI, kwargs: dict[str, Any]) -> Completion:
        timeout = kwargs["timeout"]
        kwargs = {**kwargs, "timeout": self.sdk_timeout(timeout)}
        started_monotonic_s = time.monotonic()
        whole = await fetch_async(client, kwargs, timeout)
        latency_s = time.monotonic() - started_monotonic_s
        return completion_of_answer(whole, endpoint=str(client.base_url).rstrip("/"), latency_s=latency_s)

    async def check(self, model: str) -> None:
        """See `AsyncHTTPClient.check`. A test's double of the SDK's client is not asked."""
        client = self._sdk_client()
        if not self.check_server or not is_sdk_client(client):
            return
        if self._ends is not None:
            await self._ends.get().watch()
        kwargs = self.create_kwargs([GREETING], model, None, ONE_TOKEN)
        kwargs["timeout"] = self.sdk_timeout(CHECK_TIMEOUT_S)
        await check_all([check_of_sdk(client, kwargs, self.secrets, self._as_request_error)])

    async def _query_model_impl(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> list[str]:
        """Make one attempt and return its texts."""
        completion = await self._complete_impl(
            messages=messages,
            model=model,
            conversation_formatter=conversation_formatter,
            generation_config=GenerationConfig.of(generation_config),
        )
        return list(completion.texts)

    def _as_request_error(self, error: Exception) -> RequestError:
        request_error = super()._as_request_error(error)
        self.secrets.clean(request_error)
        return request_error

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what lives in this process, secrets that were read here among it."""
        return super().__getstate__() | {"_secrets": None}

    async def aclose(self) -> None:
        """Close the running loop's connections. Safe to call twice; the client can be used again after."""
        if self._clients is None or self._ends is None:
            return
        client, end = self._clients.pop(), self._ends.pop()
        if client is not None:
            await client.close()
        if end is not None:
            await end.aclose()

    def _sdk_client(self) -> AsyncOpenAI:
        """The SDK's client of the running event loop; made now where nobody has."""
        if self._clients is None:
            self.setup()
        return self.client

    def _take_sdk_client(self) -> AsyncOpenAI:
        """The SDK client that no loop has yet, or a new one."""
        client, self._unbound = self._unbound, None
        return client or self._make_sdk_client()

    def _make_sdk_client(self) -> AsyncOpenAI:
        client = AsyncOpenAI(**self.sdk_kwargs(is_async=True))
        client.max_retries = 0  # retries are ours: two layers would multiply, and hide a 429 from the limit
        return client
