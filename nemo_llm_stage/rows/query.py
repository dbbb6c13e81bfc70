"""
A request becomes a completion: from the store, from an identical request, or from the server.

Answers already paid for are behind the `CompletionStore` seam. Knows nothing of rows, prompts or values.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import NamedTuple, Protocol

import orjson

from nemo_llm_stage.client.llm_client import AsyncLLMClient, ConversationFormatter, GenerationConfig
from nemo_llm_stage.client.retry import backoff_s
from nemo_llm_stage.core import Completion, Message, Origin
from nemo_llm_stage.errors import (
    ConnectionFailedError,
    PromptError,
    QuarantinedError,
    RequestError,
    RunError,
    TransientError,
)
from nemo_llm_stage.rows.health import (
    NUM_DEATHS_TO_QUARANTINE,
    NUM_DEATHS_TO_SUSPECT,
    Health,
    Trouble,
    count_deaths,
)
from nemo_llm_stage.rows.memo import Memo

GIVE_UP_AFTER_S = 6 * 3600.0
"""In a job an outage must not use rows up; and what a row costs that waits is a little memory."""


class CompletionStore(Protocol):
    """Where answers already paid for are kept, by request key."""

    def get(self, key: str) -> Completion | None:
        """Return the answer to the request with this key, or None."""

    def put(self, key: str, completion: Completion) -> None:
        """Keep an answer. Returns when it is as safe as the store makes it."""


class Terms(NamedTuple):
    """
    All of a request but its messages; rows share them.

    Attributes:
        model: Name on the server.
        config: Parameters.
        formatter: For base models.
        scope: Tells servers apart that go by the same model name.
        identity: The four as stable bytes.
    """

    model: str
    config: GenerationConfig
    formatter: ConversationFormatter | None
    scope: int
    identity: bytes

    def with_config(self, config: GenerationConfig) -> Terms:
        """Return the terms with another `config`."""
        return terms_of(self.model, config, self.formatter, self.scope)


def terms_of(
    model: str, config: GenerationConfig, formatter: ConversationFormatter | None = None, scope: int = 0
) -> Terms:
    """Return the terms, with the identity that request keys are made of."""
    values = {"model": model, "formatter": describe_formatter(formatter), **asdict(config)}
    if scope:
        values["scope"] = scope
    return Terms(model, config, formatter, scope, orjson.dumps(values, option=orjson.OPT_SORT_KEYS, default=repr))


def describe_formatter(formatter: ConversationFormatter | None) -> str | None:
    """Return what the formatter's text depends on beside the conversation, as far as it can tell."""
    if formatter is None:
        return None
    describe = getattr(formatter, "describe", None)
    return str(describe()) if describe else type(formatter).__qualname__


def request_key(identity: bytes, messages: list[Message]) -> str:
    """
    Content hash of a request: 32 hex digits of BLAKE2b over its identity and its messages.

    Two requests share a key only if the server is asked the very same thing.

    Raises:
        PromptError: The messages cannot be written as JSON.
    """
    digest = hashlib.blake2b(identity, digest_size=16)
    try:
        digest.update(orjson.dumps(messages, default=repr))
    except TypeError as error:  # e.g. a lone surrogate, or an integer beyond 64 bits
        raise PromptError(f"the messages cannot be written as JSON: {error}") from None
    return digest.hexdigest()


class Querier:
    """
    Answers requests.

    Args:
        client: Ready to be used on the running loop.
        give_up_after_s: How long a request is sent again after failures that may pass, counted from its first send,
            once the client's own retries are used up; 0 fails it at once. None waits where answers are kept, by
            `GIVE_UP_AFTER_S`, and nowhere else.
        health: Shared by all rows of a run.
        memo: Where identical requests meet; None asks each on its own.
    """

    def __init__(
        self, client: AsyncLLMClient, *, give_up_after_s: float | None, health: Health, memo: Memo | None
    ) -> None:
        self._client = client
        self._give_up_after_s = give_up_after_s
        self._health = health
        self._memo = memo
        self._store_error: RunError | None = None

    async def query(
        self, messages: list[Message], terms: Terms, store: CompletionStore | None
    ) -> tuple[Completion, Origin]:
        """
        Return the answer and where it came from.

        Args:
            messages: Chat turns, oldest first.
            terms: The rest of the request.
            store: Looked up before asking, told after.

        Raises:
            RequestError: The request failed for good; its `failures` tell of every send.
            RunError: The store cannot keep the answer.
        """
        if store is None and self._memo is None:
            return await self._ask(messages, terms, self._give_up_after_s or 0.0), Origin.ASKED
        key = request_key(terms.identity, messages)
        completion = None if store is None else store.get(key)
        if completion is not None:
            if self._memo is not None:
                self._memo.keep(key, completion)
            return completion, Origin.JOURNAL
        if self._store_error is not None:  # an answer that cannot be kept must not be paid for
            raise self._store_error
        give_up_after_s = self._give_up_after_s
        if give_up_after_s is None:
            give_up_after_s = 0.0 if store is None else GIVE_UP_AFTER_S
        origin = Origin.ASKED
        if self._memo is None:
            completion = await self._ask(messages, terms, give_up_after_s)
        else:
            ask = functools.partial(self._ask, messages, terms, give_up_after_s)
            completion, is_shared = await self._memo.get(key, ask)
            origin = Origin.SHARED if is_shared else Origin.ASKED
        if store is not None:
            try:
                store.put(key, completion)
            except RunError as error:
                self._store_error = error
                raise
        return completion, origin

    async def _ask(self, messages: list[Message], terms: Terms, give_up_after_s: float) -> Completion:
        """Ask the server, again and again as long as that may help."""
        give_up_at_monotonic_s = time.monotonic() + give_up_after_s
        failures: tuple[str, ...] = ()
        num_rounds = 0
        while True:
            try:
                completion = await self._ask_once(messages, terms, failures)
            except RequestError as error:
                failures += error.failures
                error.failures = failures
                if not isinstance(error, TransientError) or time.monotonic() >= give_up_at_monotonic_s:
                    raise
                self._health.trouble = Trouble(time.monotonic(), f"{error.kind}: {error}")
                num_rounds += 1
                pause_s = max(1.0, backoff_s(num_rounds + 2, base_delay=1.0, error=error))
            else:
                self._health.note_answer()
                return replace(completion, attempts=completion.attempts + len(failures)) if failures else completion
            if failures[-1:] == (ConnectionFailedError.kind,):  # it may be back long before the pause is over
                await self._health.wait_for_server(pause_s)
            else:
                await asyncio.sleep(pause_s)  # holds no permit

    async def _ask_once(self, messages: list[Message], terms: Terms, failures: tuple[str, ...]) -> Completion:
        """Make one call of the client; carefully, for a request that may have killed the server before."""
        num_deaths = count_deaths(failures)
        if num_deaths >= NUM_DEATHS_TO_QUARANTINE:
            raise QuarantinedError(f"the server died {num_deaths} times while it had this row; it is not asked again")
        careful = self._health.one_suspect_at_a_time if num_deaths >= NUM_DEATHS_TO_SUSPECT else nullcontext()
        async with careful:
            return await self._client.complete(
                messages=messages,
                model=terms.model,
                conversation_formatter=terms.formatter,
                generation_config=terms.config,
            )
