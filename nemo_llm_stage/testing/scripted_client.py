"""
A client that needs no server: it answers from a script and keeps the requests.

Knows the client interface; nothing of HTTP.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_llm_stage.client.llm_client import (
    AsyncLLMClient,
    ConversationFormatter,
    GenerationConfig,
    completion_of_texts,
)
from nemo_llm_stage.core import Completion, Message
from nemo_llm_stage.errors import ClientError
from nemo_llm_stage.testing.simulator.answers import expected_answer

Reply = str | Sequence[str] | Completion | Exception
"""One answer: a text, n texts, a whole Completion, or an exception to raise."""

Script = Sequence[Reply] | Callable[[list[Message]], Reply | Awaitable[Reply]]
"""Answers in the order of the attempts, or a function of the messages, which may be a coroutine function."""


@dataclass(frozen=True, slots=True)
class ScriptedAttempt:
    """One request that a ScriptedClient got."""

    messages: list[Message]
    model: str
    generation_config: GenerationConfig


class ScriptedClient(AsyncLLMClient):
    """
    An AsyncLLMClient without a network.

    Args:
        script: The answers; None answers with `expected_answer`.
        limits: `max_concurrent_requests`, `max_retries`, `base_delay` as of AsyncLLMClient.

    Attributes:
        attempts: Its requests, in order, retries included.
        in_flight: Attempts running now.
        max_in_flight: The most of them at one time.
    """

    def __init__(self, script: Script | None = None, **limits: Any) -> None:
        super().__init__(**limits)
        self._script = script
        self.attempts: list[ScriptedAttempt] = []
        self.in_flight = 0
        self.max_in_flight = 0

    def setup(self) -> None:
        """Do nothing: it is ready."""

    async def _query_model_impl(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> list[str]:
        completion = await self._complete_impl(
            messages=messages,
            model=model,
            conversation_formatter=conversation_formatter,
            generation_config=GenerationConfig.of(generation_config),
        )
        return list(completion.texts)

    async def _complete_impl(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None,
        generation_config: GenerationConfig,
    ) -> Completion:
        attempt = ScriptedAttempt(list(messages), model, generation_config)
        self.attempts.append(attempt)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            reply = await self._reply_to(attempt, len(self.attempts) - 1)
        finally:
            self.in_flight -= 1
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, Completion) else completion_of_texts(reply)

    async def _reply_to(self, attempt: ScriptedAttempt, index: int) -> Reply:
        if self._script is None:
            num_choices = attempt.generation_config.n or 1
            return [expected_answer(attempt.messages, choice=choice) for choice in range(num_choices)]
        if not callable(self._script):
            if index >= len(self._script):
                raise ClientError(f"the script has {len(self._script)} answers; this is attempt {index + 1}")
            return self._script[index]
        reply = self._script(attempt.messages)
        return await reply if inspect.isawaitable(reply) else reply
