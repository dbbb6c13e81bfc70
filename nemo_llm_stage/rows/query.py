"""
A request becomes a completion: from the store, from an identical request, or from the server.

The store holds the answers of earlier runs. Knows nothing of rows, prompts or values.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Awaitable
from dataclasses import asdict
from typing import NamedTuple, Protocol

import orjson

from nemo_llm_stage.client.llm_client import AsyncLLMClient, ConversationFormatter, GenerationConfig
from nemo_llm_stage.client.retry import RetryPolicy
from nemo_llm_stage.core import Completion, Message, Origin
from nemo_llm_stage.errors import PromptError, RunError
from nemo_llm_stage.rows.health import Health
from nemo_llm_stage.rows.memo import Memo

GIVE_UP_AFTER_S = 6 * 3600.0
"""An outage must not fail the rows of a job; a waiting row costs a few kB of memory."""


class CompletionStore(Protocol):
    """Keeps answers by request key, so that none is paid for twice."""

    def get(self, key: str) -> Completion | None:
        """Return the answer to the request with this key, or None."""

    def put(self, key: str, completion: Completion) -> None:
        """Keep an answer. Returns once it is as durable as the store makes it."""


class Terms(NamedTuple):
    """
    Everything of a request but its messages; rows share it.

    Attributes:
        model: Name on the server.
        config: Parameters.
        formatter: Renders the messages for a base model.
        scope: Number of the server, so that two servers with the same model name are told apart.
        identity: The other fields as stable bytes.
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
    """Return the terms, with the identity that is part of each request's key."""
    values = {"model": model, "formatter": describe_formatter(formatter), **asdict(config)}
    if scope:
        values["scope"] = scope
    return Terms(model, config, formatter, scope, orjson.dumps(values, option=orjson.OPT_SORT_KEYS, default=repr))


def describe_formatter(formatter: ConversationFormatter | None) -> str | None:
    """Return what the formatter's output depends on beside the messages, as far as it can tell."""
    if formatter is None:
        return None
    describe = getattr(formatter, "describe", None)
    return str(describe()) if describe else type(formatter).__qualname__


def request_key(identity: bytes, messages: list[Message]) -> str:
    """
    Content hash of a request: 32 hex digits of BLAKE2b over its identity and its messages.

    Two requests have the same key only if they are the same to the server.

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
    Gets the answers to requests.

    Args:
        client: Ready to be used on the running loop.
        give_up_after_s: Seconds since a request's start for which it is sent again after transient failures, once the
            client's own retries are used up; 0 gives it up then. None means `GIVE_UP_AFTER_S` where a store keeps the
            answers, else 0.
        health: Of the client's server.
        memo: Where identical requests meet; None sends each.
    """

    def __init__(
        self, client: AsyncLLMClient, *, give_up_after_s: float | None, health: Health, memo: Memo | None
    ) -> None:
        self._client = client
        self._unkept = client.retry_policy(give_up_after_s or 0.0)
        self._kept = client.retry_policy(GIVE_UP_AFTER_S if give_up_after_s is None else give_up_after_s)
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
            store: Looked up before sending, told after; None keeps nothing.

        Raises:
            RequestError: The request failed for good; its `failures` hold the kind of every send.
            RunError: The store cannot keep the answer, or the server fails every request.
        """
        if store is None and self._memo is None:
            return await self._fetch(messages, terms, self._unkept), Origin.ASKED
        key = request_key(terms.identity, messages)
        completion = None if store is None else store.get(key)
        if completion is not None:
            if self._memo is not None:
                self._memo.keep(key, completion)
            return completion, Origin.JOURNAL
        if self._store_error is not None:  # an answer that cannot be kept must not be paid for
            raise self._store_error
        policy = self._unkept if store is None else self._kept
        origin = Origin.ASKED
        if self._memo is None:
            completion = await self._fetch(messages, terms, policy)
        else:
            fetch = functools.partial(self._fetch, messages, terms, policy)
            completion, is_shared = await self._memo.get(key, fetch)
            origin = Origin.SHARED if is_shared else Origin.ASKED
        if store is not None:
            try:
                store.put(key, completion)
            except RunError as error:
                self._store_error = error
                raise
        return completion, origin

    def _fetch(self, messages: list[Message], terms: Terms, policy: RetryPolicy) -> Awaitable[Completion]:
        return self._client.fetch(
            messages, terms.model, terms.formatter, terms.config, policy=policy, server=self._health
        )
