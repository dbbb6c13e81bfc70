"""
One row and one column become a result: render, fetch, parse; fetch again where that can repair it.

A row's failure ends here as a value; only what no row can overcome is raised. Knows nothing of tables or files.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nemo_llm_stage.core import Completion, Origin, RowResult
from nemo_llm_stage.errors import (
    BadRequestError,
    ContextOverflowError,
    ParseError,
    RequestError,
    RowError,
    TruncatedError,
)
from nemo_llm_stage.output import reask_messages, without_reasoning
from nemo_llm_stage.rows.adjust import (
    continuation,
    cut_input,
    first_choices,
    is_cut_off,
    joined,
    max_tokens_of,
    padded,
    shrunk,
    with_max_tokens,
)
from nemo_llm_stage.rows.column import Column, Row
from nemo_llm_stage.rows.guide import Guide
from nemo_llm_stage.rows.policy import CAP_FACTOR
from nemo_llm_stage.rows.query import CompletionStore, Querier, Terms, terms_of
from nemo_llm_stage.rows.refusals import Refusals
from nemo_llm_stage.rows.trail import Trail
from nemo_llm_stage.text import encodable

MAX_FITS = 8
"""Most changes to one row's prompt to make it fit; a refused prompt costs the server little."""

MAX_TERMS = 1024
"""Cache size: distinct per-row parameter sets."""


class ColumnRunner:
    """
    Generates the results of one column, row by row.

    Args:
        column: Its definition.
        querier: Fetches completions from the column's client.
        scope: See `Terms`.
    """

    def __init__(self, column: Column, querier: Querier, *, scope: int) -> None:
        self.column = column
        self._querier = querier
        self._terms = terms_of(column.model, column.generation_config, column.conversation_formatter, scope)
        self._refusals = Refusals()
        self._policy = column.policy
        self._is_list = column.is_list
        self._guide = Guide(column.output.request_kwargs(), column.parameters.config.extra_kwargs)
        self._terms_with = functools.lru_cache(MAX_TERMS)(self._make_terms)

    async def generate(
        self, row: Row, store: CompletionStore | None = None, values: Mapping[str, Any] | None = None
    ) -> RowResult:
        """
        Return the column's result for `row`.

        Args:
            row: The row of the input.
            store: Looked up before a request is sent, told after.
            values: What the prompt sees of other generated columns; None for nothing.

        Raises:
            FatalError: No row can succeed here.
            RunError: The run is broken.
        """
        trail = Trail(self._terms, store)
        try:
            if values:
                row = {**row, **values}
            prompt = self.column.prompt
            if prompt.reads_files:
                trail.messages = await asyncio.to_thread(prompt.render, row)
            else:
                trail.messages = prompt.render(row)
            if self.column.parameters.expressions:
                own = self.column.parameters.of_row(row)
                trail.begin(self._terms_with(**own), own)
            completion = await self._complete(trail)
            if self._is_list:
                return await self._values(trail, completion)
            return trail.result(await self._value(trail, completion))
        except RequestError as error:
            self._refusals.check(error)
            trail.count(error)
            return trail.failed(f"{error.kind}: {error}")

    def _make_terms(self, **own: Any) -> Terms:
        return self._terms.with_config(replace(self._terms.config, **own))

    async def _complete(self, trail: Trail) -> Completion:
        """
        Return an answer as complete as the policy wants it. A prompt that is too long is shortened if it allows that.

        Raises:
            RequestError: There is no such answer.
        """
        while True:
            try:
                completion, origin = await self._querier.query(trail.messages, trail.terms, trail.store)
            except ContextOverflowError as error:
                self._fit(trail, error)
                trail.count(error)
            except BadRequestError as error:
                self._unguide(trail, error)
                trail.count(error)
            except TruncatedError as error:  # the token limit was reached before the first word of the answer
                self._lengthen(trail, error)
                trail.count(error)
            else:
                completion = first_choices(completion, trail.terms.config.n or 1)
                trail.take(completion, origin)
                if origin is not Origin.JOURNAL:
                    self._refusals.note_answer()
                if self._policy.on_truncated == "accept" or not is_cut_off(completion):
                    return completion
                cut = TruncatedError(f"the answer was cut off at max_tokens={max_tokens_of(trail.terms.config)}")
                if self._policy.on_truncated == "continue":
                    return await self._go_on(trail, completion, cut)
                self._lengthen(trail, cut)

    def _unguide(self, trail: Trail, error: BadRequestError) -> None:
        """From now on send requests without the parameters that the server refuses, or raise `error`."""
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
        """Raise the limit of output tokens of the next request, or raise `error`."""
        current = max_tokens_of(trail.terms.config)
        if self._policy.on_truncated != "retry_longer" or current is None:
            raise error
        longer = min(2 * current, self._cap(trail))
        if longer <= current:
            raise error
        trail.change_config(with_max_tokens(trail.terms.config, longer))
        trail.note("retry_longer")

    async def _go_on(self, trail: Trail, first: Completion, error: TruncatedError) -> Completion:
        """Return `first` with its continuations as one answer, or raise `error`."""
        max_tokens = max_tokens_of(trail.terms.config)
        if max_tokens is None:
            raise error
        parts, whole = [first], first
        config = with_max_tokens(replace(self.column.parameters.config, **trail.own), max_tokens)
        trail.note("continue")
        for _ in range(self._cap(trail) // max_tokens - 1):
            turns, going_on, formatter = continuation(
                trail.messages, whole.texts[0].rstrip(), config, trail.terms.formatter
            )
            terms = terms_of(trail.terms.model, going_on, formatter, trail.terms.scope)
            try:
                part, origin = await self._querier.query(turns, terms, trail.store)
            except RowError as failure:
                trail.count(failure)
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
        try:
            return self._parse(completion, 0)
        except ParseError as error:
            return await self._reask(trail, completion.texts[0], error)

    async def _values(self, trail: Trail, completion: Completion) -> RowResult:
        """
        Return a result with a list of one value for each of n choices.

        A choice without a value (filtered, never given, unparsable) is null in the list, and the error names it; the
        other choices keep their values. The list itself is null if no choice has a value.
        """
        num = self._terms.config.n or 1
        num_given = len(completion.texts)
        trail.completion = padded(completion, num)
        values: list[Any] = [None] * num
        errors: dict[int, str] = {}
        for choice in range(num):
            told = completion.error_of(choice)
            if told is not None:
                errors[choice] = told
                continue
            try:
                values[choice] = await self._choice(trail, completion, choice, is_given=choice < num_given)
            except RequestError as error:
                self._refusals.check(error)
                trail.count(error)
                errors[choice] = f"{error.kind}: {error}"
        return trail.result_of_choices(values, errors, keeps_nulls=not self.column.explode)

    async def _choice(self, trail: Trail, completion: Completion, choice: int, *, is_given: bool) -> Any:
        """Return the value of a choice; of another answer in its place where the server gave none or a bad one."""
        if is_given:
            try:
                return self._parse(completion, choice)
            except ParseError as error:
                branch = trail.branch()
                value = self._reask(branch, completion.texts[choice], error)
        else:
            branch = trail.branch(seed_offset=choice)
            branch.note("single_choices")
            value = self._fetch_choice(branch)
        is_good = False
        try:
            result = await value
            is_good = True
            return result
        finally:
            trail.join(branch, choice, is_good=is_good)

    async def _fetch_choice(self, branch: Trail) -> Any:
        return await self._value(branch, await self._complete(branch))

    async def _reask(self, trail: Trail, answer: str, error: ParseError) -> Any:
        """
        Return the value of a new answer, in place of one that could not be parsed.

        Raises:
            ParseError: None of `max_reasks` new answers can be parsed, or the server refused to give one. It is the
                error of the last answer.
            TransientError: The server does not answer.
        """
        for _ in range(self._policy.max_reasks):
            trail.messages = reask_messages(trail.messages, encodable(answer), error)
            trail.note("reask")
            try:
                completion = await self._complete(trail)
            except RowError as failure:
                trail.count(failure)
                raise error from failure
            try:
                return self._parse(completion, 0)
            except ParseError as again:
                error, answer = again, completion.texts[0]
        raise error

    def _parse(self, completion: Completion, choice: int) -> Any:
        text = completion.texts[choice]
        if self.column.reasoning_column:
            text = without_reasoning(text, completion, choice)
        try:
            return self.column.output.parse(text, completion, choice)
        except ParseError as error:
            failure = str(error)
        except Exception as error:  # noqa: BLE001 - a user's parser may raise anything
            failure = f"the parser raised {type(error).__name__}: {error}"
        failure = encodable(failure)  # it may go back to the model
        raise ParseError(f"{failure} The answer was cut off at max_tokens." if is_cut_off(completion) else failure)
