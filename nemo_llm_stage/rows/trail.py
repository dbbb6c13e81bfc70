"""
What one row has been through: its next request, and what its answers so far cost.

Only keeps the account; `generate` decides what is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from nemo_llm_stage.client.llm_client import GenerationConfig
from nemo_llm_stage.core import Completion, Message, Origin, RowResult, sum_usages
from nemo_llm_stage.errors import RequestError
from nemo_llm_stage.rows.query import CompletionStore, Terms
from nemo_llm_stage.text import encodable

T = TypeVar("T")

MAX_ERROR_CHARS = 1000
"""Longest error message kept for a row; servers may answer with whole pages."""


class Trail:
    """
    The state of one row of one column until it has a result.

    Args:
        terms: Of the first request.
        store: Where the answers are looked up and kept.

    Attributes:
        first: Terms of the first request.
        terms: Of the next request.
        own: The parameters that come from the row: name → value.
        messages: Of the next request.
        completion: The latest answer.
        origin: Where the latest answer came from.
        attempts: Sends so far that reached the server.
        failures: The kinds of the failed sends so far, refused connections included.
        num_fits: How often the prompt was changed to make it fit.
    """

    __slots__ = (
        "_discarded",
        "_num_parts",
        "_steps",
        "attempts",
        "completion",
        "failures",
        "first",
        "messages",
        "num_fits",
        "origin",
        "own",
        "store",
        "terms",
    )

    def __init__(self, terms: Terms, store: CompletionStore | None) -> None:
        self.first = self.terms = terms
        self.own: dict[str, Any] = {}
        self.store = store
        self.messages: list[Message] = []
        self.completion: Completion | None = None
        self.origin = Origin.ASKED
        self.attempts = 0
        self.failures: tuple[str, ...] = ()
        self.num_fits = 0
        self._num_parts = 1
        self._discarded: tuple[Completion, ...] = ()
        self._steps: tuple[str, ...] = ()

    def note(self, step: str) -> None:
        """Remember that `step` was taken."""
        if step not in self._steps:
            self._steps += (step,)

    def change_config(self, config: GenerationConfig) -> None:
        """Send the next requests with `config`."""
        self.terms = self.terms.with_config(config)

    def begin(self, terms: Terms, own: dict[str, Any]) -> None:
        """Send the first request with `terms`; their parameters `own` come from the row."""
        self.first = self.terms = terms
        self.own = own

    def take(self, completion: Completion, origin: Origin) -> None:
        """Take a new answer; the one before is discarded."""
        if self.completion is not None:
            self._discard(self.completion)
        self.attempts += completion.attempts
        if origin is not Origin.SHARED:
            self.failures += completion.failures
        self.completion, self.origin, self._num_parts = completion, origin, 1

    def extend(self, whole: Completion, part: Completion, origin: Origin) -> None:
        """Take `part`, the continuation of the latest answer, which together with it is `whole`."""
        self.attempts += part.attempts
        if origin is not Origin.SHARED:
            self.failures += part.failures
        self.completion, self.origin = whole, _more_costly(self.origin, origin)
        self._num_parts += 1

    def branch(self, seed_offset: int = 0) -> Trail:
        """Return the trail of a request for one more choice, with another seed if there is one."""
        branch = Trail(self.terms, self.store)
        branch.messages = self.messages
        seed = self.terms.config.seed
        branch.change_config(replace(self.terms.config, n=1, seed=None if seed is None else seed + seed_offset))
        return branch

    def join(self, branch: Trail, choice: int, *, is_good: bool) -> None:
        """Take the account of a branch, and if it `is_good` its answer in the place of `choice`."""
        whole, part = self.completion, branch.completion
        self.attempts += branch.attempts
        self.failures += branch.failures
        self._discarded += branch._discarded
        for step in branch._steps:
            self.note(step)
        if whole is None or part is None:
            return
        if not is_good:
            self._discarded += (part,)
            return
        self.completion = replace(
            whole,
            texts=_put(whole.texts, choice, part.texts),
            finish_reasons=_put(whole.finish_reasons, choice, part.finish_reasons),
            reasoning=_put(whole.reasoning, choice, part.reasoning),
            choice_errors=_put(whole.choice_errors, choice, (None,)),
            usage=sum_usages([whole.usage, part.usage]),
        )
        self.origin = _more_costly(self.origin, branch.origin)
        self._num_parts += branch._num_parts

    def count(self, error: RequestError) -> None:
        """Count the sends of a request that failed."""
        self.attempts += error.attempts
        self.failures += error.failures

    def failed(self, error: str) -> RowResult:
        """Return the result of a row without a value."""
        return self.result(None, _shown(error))

    def result_of_choices(self, values: list[Any], errors: Mapping[int, str], *, keeps_nulls: bool) -> RowResult:
        """
        Return the result of a row with several choices.

        Args:
            values: Of each choice; None for those with an error.
            errors: Choice without a value → ``kind: message``.
            keeps_nulls: Whether the null of a choice without a value is written, beside an error. Else it has no row.
        """
        if not errors:
            return self.result(values)
        if self.completion is not None:
            self.completion = replace(self.completion, choice_errors=tuple(map(errors.get, range(len(values)))))
        is_empty = len(errors) == len(values)
        if not is_empty and not keeps_nulls:
            self.note("lost_choices")
            return self.result(values)
        kind = next(iter(errors.values())).partition(": ")[0]
        texts = [f"choice {choice}: {error.partition(': ')[2]}" for choice, error in errors.items()]
        return self.result(None if is_empty else values, _shown(f"{kind}: {'; '.join(texts)}"))

    def result(self, value: Any, error: str | None = None) -> RowResult:
        """Return the row's result."""
        if not self._steps:
            return RowResult(value, error, self.completion, self.attempts, self.origin, failures=self.failures)
        return RowResult(
            value,
            error,
            self.completion,
            self.attempts,
            self.origin,
            discarded=self._discarded,
            num_parts=self._num_parts,
            recovery="+".join(self._steps),
            failures=self.failures,
        )

    def _discard(self, completion: Completion) -> None:
        if self.origin is Origin.SHARED:  # counted with the row that sent it
            self.attempts -= completion.attempts
        else:
            self._discarded += (completion,)


def _shown(error: str) -> str:
    return encodable(error[:MAX_ERROR_CHARS])


def _put(items: tuple[T, ...], index: int, one: tuple[T, ...]) -> tuple[T, ...]:
    return (*items[:index], one[0], *items[index + 1 :]) if index < len(items) and one else items


def _more_costly(one: Origin, other: Origin) -> Origin:
    return Origin.ASKED if Origin.ASKED in (one, other) else one
