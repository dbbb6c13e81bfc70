"""
What one row has been through: the request as it now stands, and what its answers so far cost.

Keeps the account straight while `ask` decides; asks nobody itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from nemo_llm_stage.client.llm_client import GenerationConfig
from nemo_llm_stage.core import Completion, Message, Origin, RowResult, sum_usages
from nemo_llm_stage.rows.query import CompletionStore, Terms

T = TypeVar("T")


class Trail:
    """
    The state of one row while it is asked.

    Args:
        terms: Of the first request.
        store: Where its answers are looked up and kept.

    Attributes:
        first: Terms of the first request.
        terms: Of the next request.
        own: The parameters that come from the row: name → value.
        messages: Of the next request.
        completion: The latest answer.
        origin: Where it came from.
        attempts: Sends so far.
        num_fits: Times that the prompt has been made to fit.
    """

    __slots__ = (
        "_discarded",
        "_num_parts",
        "_steps",
        "attempts",
        "completion",
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
        self.num_fits = 0
        self._num_parts = 1
        self._discarded: tuple[Completion, ...] = ()
        self._steps: tuple[str, ...] = ()

    def note(self, step: str) -> None:
        """Remember that `step` was taken."""
        if step not in self._steps:
            self._steps += (step,)

    def change_config(self, config: GenerationConfig) -> None:
        """Ask with `config` from now on."""
        self.terms = self.terms.with_config(config)

    def begin(self, terms: Terms, own: dict[str, Any]) -> None:
        """Ask with `terms`, of which `own` come from the row."""
        self.first = self.terms = terms
        self.own = own

    def take(self, completion: Completion, origin: Origin) -> None:
        """Take note of a new answer; the one before is of no use."""
        if self.completion is not None:
            self._discard(self.completion)
        self.attempts += completion.attempts
        self.completion, self.origin, self._num_parts = completion, origin, 1

    def extend(self, whole: Completion, part: Completion, origin: Origin) -> None:
        """Take note of an answer's continuation, `part`, with which it is now `whole`."""
        self.attempts += part.attempts
        self.completion, self.origin = whole, _more_costly(self.origin, origin)
        self._num_parts += 1

    def branch(self) -> Trail:
        """Return the trail of asking for one choice anew."""
        branch = Trail(self.terms, self.store)
        branch.messages = self.messages
        branch.change_config(replace(self.terms.config, n=1))
        return branch

    def join(self, branch: Trail, choice: int, *, is_good: bool) -> None:
        """Take note of how a branch ended: with an answer in the place of `choice`, or without."""
        whole, part = self.completion, branch.completion
        self.attempts += branch.attempts
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
            usage=sum_usages([whole.usage, part.usage]),
        )
        self.origin = _more_costly(self.origin, branch.origin)
        self._num_parts += branch._num_parts

    def result(self, value: Any, error: str | None = None) -> RowResult:
        """Return what the row came to."""
        if not self._steps:
            return RowResult(value, error, self.completion, self.attempts, self.origin)
        return RowResult(
            value,
            error,
            self.completion,
            self.attempts,
            self.origin,
            discarded=self._discarded,
            num_parts=self._num_parts,
            recovery="+".join(self._steps),
        )

    def _discard(self, completion: Completion) -> None:
        if self.origin is Origin.SHARED:  # another row's expense
            self.attempts -= completion.attempts
        else:
            self._discarded += (completion,)


def _put(items: tuple[T, ...], index: int, one: tuple[T, ...]) -> tuple[T, ...]:
    return (*items[:index], one[0], *items[index + 1 :]) if index < len(items) and one else items


def _more_costly(one: Origin, other: Origin) -> Origin:
    return Origin.ASKED if Origin.ASKED in (one, other) else one
