"""
A row becomes a result: render, query, parse; ask again where that can put things right.

Every failure of a row ends here as a value; only what no row can overcome is raised. Knows nothing of tables or files.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nemo_llm_stage.client.llm_client import ConversationFormatter, GenerationConfig
from nemo_llm_stage.core import Completion, RowResult
from nemo_llm_stage.errors import (
    BadRequestError,
    ContextOverflowError,
    ParseError,
    RequestError,
    RowError,
    TruncatedError,
)
from nemo_llm_stage.output import Output, reask_messages, split_reasoning
from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.rows.adjust import (
    continuation,
    cut_input,
    is_cut_off,
    joined,
    max_tokens_of,
    shrunk,
    with_max_tokens,
)
from nemo_llm_stage.rows.guide import Guide
from nemo_llm_stage.rows.health import Health
from nemo_llm_stage.rows.parameters import Parameters
from nemo_llm_stage.rows.policy import CAP_FACTOR, RecoveryPolicy
from nemo_llm_stage.rows.query import CompletionStore, Querier, Terms, terms_of
from nemo_llm_stage.rows.trail import Trail

MAX_ERROR_CHARS = 1000
"""Longest error message kept for a row; servers may answer with whole pages."""

MAX_FITS = 8
"""Times that one row's prompt is made to fit; a refused prompt costs the server little."""

MAX_TERMS = 1024
"""Sets of parameters, of rows that have their own, that are kept made up."""

Row = Mapping[str, Any]


class Asker:
    """
    Asks one row after another of one column.

    Args:
        querier: Answers requests.
        model: Asked.
        config: Of every row's first request; what `output` asks of the request is already in it.
        formatter: For a base model.
        prompt: Makes the messages.
        parameters: Those of the row, and those of all rows without what `output` asks for: a grammar would begin anew
            in the middle of an answer.
        output: Makes the value.
        policy: What is done with an answer that cannot be used, and with a prompt that does not fit.
        hides_reasoning: Whether `output` gets the answer without the thinking before it.
        health: Of the server.
        scope: See `Terms`.
    """

    def __init__(
        self,
        querier: Querier,
        model: str,
        config: GenerationConfig,
        formatter: ConversationFormatter | None,
        *,
        prompt: Prompt,
        parameters: Parameters,
        output: Output,
        policy: RecoveryPolicy,
        hides_reasoning: bool,
        health: Health,
        scope: int,
    ) -> None:
        self._querier = querier
        self._terms = terms_of(model, config, formatter, scope)
        self._prompt = prompt
        self._parameters = parameters
        self._output = output
        self._policy = policy
        self._hides_reasoning = hides_reasoning
        self._health = health
        self._is_list = (config.n or 1) > 1
        self._guide = Guide(output.request_kwargs(), parameters.config.extra_kwargs)
        self._terms_with = functools.lru_cache(MAX_TERMS)(self._make_terms)

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
        trail = Trail(self._terms, store)
        try:
            trail.messages = self._prompt.render(row)
            if self._parameters.expressions:
                own = self._parameters.of_row(row)
                trail.begin(self._terms_with(**own), own)
            completion = await self._complete(trail)
            return trail.result(await self._value(trail, completion))
        except RequestError as error:
            self._health.check(error)
            trail.attempts += error.attempts
            text = f"{error.kind}: {error}"[:MAX_ERROR_CHARS]
            return trail.result(None, text.encode("utf-8", "replace").decode())  # half a surrogate pair has no column

    def _make_terms(self, **own: Any) -> Terms:
        return self._terms.with_config(replace(self._terms.config, **own))

    async def _complete(self, trail: Trail) -> Completion:
        """
        Return an answer that is whole as far as the policy wants it, to a prompt made to fit as far as it allows.

        Raises:
            RequestError: There is none.
        """
        while True:
            try:
                completion, origin = await self._querier.query(trail.messages, trail.terms, trail.store)
            except ContextOverflowError as error:
                self._fit(trail, error)
                trail.attempts += error.attempts
            except BadRequestError as error:
                self._unguide(trail, error)
                trail.attempts += error.attempts
            except TruncatedError as error:  # all was spent before the first word
                self._lengthen(trail, error)
                trail.attempts += error.attempts
            else:
                trail.take(completion, origin)
                if self._policy.on_truncated == "accept" or not is_cut_off(completion):
                    return completion
                cut = TruncatedError(f"the answer was cut off at max_tokens={max_tokens_of(trail.terms.config)}")
                if self._policy.on_truncated == "continue":
                    return await self._go_on(trail, completion, cut)
                self._lengthen(trail, cut)

    def _unguide(self, trail: Trail, error: BadRequestError) -> None:
        """Ask this row, and those to come, without what the server does not take, or raise `error`."""
        config = self._guide.without(trail.terms.config)
        if config == trail.terms.config or not self._guide.is_refused_by(error):
            raise error
        self._terms = self._terms.with_config(self._guide.without(self._terms.config))
        self._terms_with.cache_clear()
        trail.change_config(config)
        trail.note("unguided")

    def _fit(self, trail: Trail, error: ContextOverflowError) -> None:
        """Change the request so that it fits, or raise `error`."""
        policy, config = self._policy.on_overflow, trail.terms.config
        if policy == "error" or trail.num_fits == MAX_FITS:
            raise error
        if policy == "shrink_output":
            trail.change_config(shrunk(config, error))
        else:
            trail.messages = cut_input(
                trail.messages,
                error,
                place=policy.removeprefix("truncate_input_"),
                max_tokens=max_tokens_of(config),
                is_first=trail.num_fits == 0,
            )
        trail.num_fits += 1
        trail.note(policy)

    def _lengthen(self, trail: Trail, error: TruncatedError) -> None:
        """Ask for a longer answer, or raise `error`."""
        current = max_tokens_of(trail.terms.config)
        if self._policy.on_truncated != "retry_longer" or current is None:
            raise error
        longer = min(2 * current, self._cap(trail))
        if longer <= current:
            raise error
        trail.change_config(with_max_tokens(trail.terms.config, longer))
        trail.note("retry_longer")

    async def _go_on(self, trail: Trail, first: Completion, error: TruncatedError) -> Completion:
        """Return the answer that `first` and its continuations make up, or raise `error`."""
        max_tokens = max_tokens_of(trail.terms.config)
        if max_tokens is None:
            raise error
        parts, whole = [first], first
        config = with_max_tokens(replace(self._parameters.config, **trail.own), max_tokens)
        trail.note("continue")
        for _ in range(self._cap(trail) // max_tokens - 1):
            turns, going_on, formatter = continuation(
                trail.messages, whole.texts[0].rstrip(), config, trail.terms.formatter
            )
            terms = terms_of(trail.terms.model, going_on, formatter, trail.terms.scope)
            try:
                part, origin = await self._querier.query(turns, terms, trail.store)
            except RowError as failure:
                trail.attempts += failure.attempts
                raise TruncatedError(f"{error}, and could not be continued: {failure}") from failure
            parts.append(part)
            whole = joined(parts)
            trail.extend(whole, part, origin)
            if not is_cut_off(part):
                return whole
        raise error

    def _cap(self, trail: Trail) -> int:
        return self._policy.max_tokens_cap or CAP_FACTOR * (max_tokens_of(trail.first.config) or 0)

    async def _value(self, trail: Trail, completion: Completion) -> Any:
        values = []
        for choice in range(len(completion.texts)):
            try:
                values.append(self._parse(completion, choice))
            except ParseError as error:
                values.append(await self._reask(trail, choice, completion.texts[choice], error))
        return values if self._is_list else values[0]

    async def _reask(self, trail: Trail, choice: int, answer: str, error: ParseError) -> Any:
        """
        Return the value of another answer, in the place of one that could not be parsed.

        Raises:
            ParseError: There is none within `max_reasks`; the last one's, or the one before a request was refused.
            TransientError: The server cannot be asked.
        """
        asking = trail.branch() if self._is_list else trail
        is_good = False
        try:
            for _ in range(self._policy.max_reasks):
                asking.messages = reask_messages(asking.messages, answer, error)
                asking.note("reask")
                try:
                    completion = await self._complete(asking)
                except RowError as failure:
                    asking.attempts += failure.attempts
                    raise error from failure
                try:
                    value = self._parse(completion, 0)
                except ParseError as again:
                    error, answer = again, completion.texts[0]
                else:
                    is_good = True
                    return value
            raise error
        finally:
            if asking is not trail:
                trail.join(asking, choice, is_good=is_good)

    def _parse(self, completion: Completion, choice: int) -> Any:
        text = completion.texts[choice]
        try:
            return self._output.parse(split_reasoning(text)[1] if self._hides_reasoning else text, completion, choice)
        except ParseError as error:
            failure = str(error)
        except Exception as error:  # noqa: BLE001 - a user's parser may raise anything
            failure = f"the parser raised {type(error).__name__}: {error}"
        raise ParseError(f"{failure} The answer was cut off at max_tokens." if is_cut_off(completion) else failure)
