"""
A row becomes a result: render, look up, query, parse.

Every failure of a row ends here as a value; only what no row can overcome is raised. Knows nothing of tables or files:
answers already paid for are behind the `CompletionStore` seam.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import orjson

from nemo_llm_stage.client.llm_client import AsyncLLMClient, ConversationFormatter, GenerationConfig
from nemo_llm_stage.client.retry import backoff_s
from nemo_llm_stage.core import Completion, Message, Origin, RowResult
from nemo_llm_stage.errors import (
    BadRequestError,
    ConnectionDroppedError,
    ConnectionFailedError,
    FatalError,
    ParseError,
    QuarantinedError,
    RequestError,
    RunError,
    TransientError,
)
from nemo_llm_stage.output import Output
from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.stage.memo import Memo

MAX_ERROR_CHARS = 1000
"""Longest error message kept for a row; servers may answer with whole pages."""

NUM_REFUSED_TO_STOP = 20
"""As many rows refused by the server, and none answered yet, stop the run: the settings are wrong, not the rows."""

NUM_FATAL_TO_STOP = 3
"""As many fatal errors in a row stop a run that has had answers: one alone may be a gateway refusing one text."""

NUM_DEATHS_TO_SUSPECT = 2
"""A row that was under way at as many deaths of the server is asked beside no other such row from then on."""

NUM_DEATHS_TO_QUARANTINE = 3
"""One more, and it is not asked again."""

Row = Mapping[str, Any]


class CompletionStore(Protocol):
    """Where answers already paid for are kept, by request key."""

    def get(self, key: str) -> Completion | None:
        """Return the answer to the request with this key, or None."""

    def put(self, key: str, completion: Completion) -> None:
        """Keep an answer. Returns when it is as safe as the store makes it."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """
    Why rows wait, for people to look at.

    Attributes:
        at_monotonic_s: When a row was last put off.
        error: The error it had, as ``kind: message``.
    """

    at_monotonic_s: float
    error: str


class Health:
    """Tells a row's own failure from a run that cannot succeed, by what the server has done so far."""

    def __init__(self) -> None:
        self._has_answered = False
        self._num_refused = 0
        self._num_fatal_in_a_row = 0

        self.trouble: Trouble | None = None
        self.one_suspect_at_a_time = asyncio.Lock()

    def note_answer(self) -> None:
        """The server answered a row."""
        self._has_answered = True
        self._num_fatal_in_a_row = 0

    def check(self, error: RequestError) -> None:
        """
        Take note of a failed request.

        Raises:
            FatalError: No row can succeed: a bad key or model before any answer, or again and again.
            RunError: The server refused the first `NUM_REFUSED_TO_STOP` rows and answered none.
        """
        if isinstance(error, FatalError):
            self._num_fatal_in_a_row += 1
            if not self._has_answered or self._num_fatal_in_a_row >= NUM_FATAL_TO_STOP:
                raise error
        if isinstance(error, BadRequestError) and not self._has_answered:
            self._num_refused += 1
            if self._num_refused >= NUM_REFUSED_TO_STOP:
                raise RunError(
                    f"the server refused the first {self._num_refused} rows and answered none; the last with: {error}"
                )


class Asker:
    """
    Asks one row after another of one column.

    Args:
        client: Ready to be used on the running loop.
        model: Name on the server.
        prompt: Makes the messages.
        output: Makes the value.
        generation_config: What `output` asks of the request is already in it.
        conversation_formatter: For base models.
        give_up_after_s: How long a row is asked again after failures that may pass, counted from its first send, once
            the client's own retries are used up; 0 fails it at once.
        health: Shared by all askers of a run.
        memo: Where identical requests meet; None asks each on its own.
    """

    def __init__(
        self,
        *,
        client: AsyncLLMClient,
        model: str,
        prompt: Prompt,
        output: Output,
        generation_config: GenerationConfig,
        conversation_formatter: ConversationFormatter | None,
        give_up_after_s: float,
        health: Health,
        memo: Memo | None,
    ) -> None:
        self._client = client
        self._model = model
        self._prompt = prompt
        self._output = output
        self._config = generation_config
        self._formatter = conversation_formatter
        self._give_up_after_s = give_up_after_s
        self._health = health
        self._memo = memo
        self._is_list = (generation_config.n or 1) > 1
        self._key_prefix = request_identity(model, generation_config, conversation_formatter)

    async def ask(self, row: Row, store: CompletionStore | None = None) -> RowResult:
        """
        Return what `row` comes to.

        Args:
            row: Column name → value.
            store: Looked up before asking, told after.

        Raises:
            FatalError: No row can succeed here.
            RunError: The run is broken.
        """
        completion: Completion | None = None
        origin = Origin.ASKED
        try:
            messages = self._prompt.render(row)
            completion, origin = await self._answer(messages, store)
            return RowResult(self._parse(completion), None, completion, completion.attempts, origin)
        except RequestError as error:
            self._health.check(error)
            attempts = error.attempts if completion is None else completion.attempts
            return RowResult(None, f"{error.kind}: {error}"[:MAX_ERROR_CHARS], completion, attempts, origin)

    async def _answer(self, messages: list[Message], store: CompletionStore | None) -> tuple[Completion, Origin]:
        """Take the answer from the store or from an identical request, or ask the server."""
        if store is None and self._memo is None:
            return await self._query(messages), Origin.ASKED
        key = request_key(self._key_prefix, messages)
        completion = None if store is None else store.get(key)
        if completion is not None:
            if self._memo is not None:
                self._memo.keep(key, completion)
            return completion, Origin.JOURNAL
        origin = Origin.ASKED
        if self._memo is None:
            completion = await self._query(messages)
        else:
            completion, is_shared = await self._memo.get(key, lambda: self._query(messages))
            origin = Origin.SHARED if is_shared else Origin.ASKED
        if store is not None:
            store.put(key, completion)
        return completion, origin

    async def _query(self, messages: list[Message]) -> Completion:
        """Ask the server, again and again as long as that may help."""
        give_up_at_monotonic_s = time.monotonic() + self._give_up_after_s
        failures: tuple[str, ...] = ()
        num_rounds = 0
        while True:
            try:
                completion = await self._query_once(messages, failures)
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
            await asyncio.sleep(pause_s)  # holds no permit

    async def _query_once(self, messages: list[Message], failures: tuple[str, ...]) -> Completion:
        """Make one call of the client; carefully, for a row that may have killed the server before."""
        num_deaths = count_deaths(failures)
        if num_deaths >= NUM_DEATHS_TO_QUARANTINE:
            raise QuarantinedError(f"the server died {num_deaths} times while it had this row; it is not asked again")
        careful = self._health.one_suspect_at_a_time if num_deaths >= NUM_DEATHS_TO_SUSPECT else nullcontext()
        async with careful:
            return await self._client.complete(
                messages=messages,
                model=self._model,
                conversation_formatter=self._formatter,
                generation_config=self._config,
            )

    def _parse(self, completion: Completion) -> Any:
        values = []
        for choice, text in enumerate(completion.texts):
            try:
                values.append(self._output.parse(text, completion, choice))
            except ParseError:
                raise
            except Exception as error:
                raise ParseError(f"the parser raised {type(error).__name__}: {error}") from error
        return values if self._is_list else values[0]


def request_identity(model: str, config: GenerationConfig, formatter: ConversationFormatter | None) -> bytes:
    """Everything of a request but its messages, as stable bytes."""
    identity = {
        "model": model,
        "formatter": None if formatter is None else type(formatter).__qualname__,
        **asdict(config),
    }
    return orjson.dumps(identity, option=orjson.OPT_SORT_KEYS, default=repr)


def request_key(identity: bytes, messages: list[Message]) -> str:
    """
    Content hash of a request: 32 hex digits of BLAKE2b over its identity and its messages.

    Two requests share a key only if the server is asked the very same thing.
    """
    digest = hashlib.blake2b(identity, digest_size=16)
    digest.update(orjson.dumps(messages, default=repr))
    return digest.hexdigest()


def count_deaths(failures: Sequence[str]) -> int:
    """
    Return how often the server died while it had a row: its connection dropped, and then none could be made.

    Args:
        failures: The kind of each failed send of the row, oldest first.
    """
    dropped, failed = ConnectionDroppedError.kind, ConnectionFailedError.kind
    return sum(pair == (dropped, failed) for pair in pairwise(failures))
