"""
The nouns that every room shares: what an answer is, and what the result of a row is.

Frozen, slotted, standard library only. Knows nothing of HTTP, tables, files or Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from enum import Enum
from functools import update_wrapper
from typing import Any, TypeVar

T = TypeVar("T")

REFUSED = "connection_failed"
"""Kind of a send that never reached a server."""

CUT_OFF_REASONS = frozenset(
    {
        *("length", "max_tokens", "model_length", "max_length", "max_output_tokens"),  # OpenAI, Anthropic, Mistral
        *("model_context_window_exceeded", "error_limit", "context_length", "token_limit"),  # Anthropic, Cohere
    }
)
"""Finish reasons, in lower case, of a text that ended because the number of tokens was limited."""

RATE_LIMITED = "rate_limit"
"""Kind of a send that the server did no work for."""

_STOPPED = ("stop",)
"""The finish reasons of most answers."""

Message = dict[str, Any]
"""One chat turn as the OpenAI protocol writes it: ``{"role": …, "content": …}``."""

JSON_OBJECT_KEY = b"nemo_llm_stage:json_object"
"""Metadata of an Arrow field while a job runs: maps in it are objects of JSON, and prompts see them as such."""


def _with_quick_init(cls: type[T]) -> type[T]:
    """
    Return a frozen, slotted dataclass with an ``__init__`` that sets the slots themselves, at half the cost.

    The usual one calls ``object.__setattr__`` for each field. Three such objects are made for every row.
    """
    declared = fields(cls)  # type: ignore[arg-type]
    scope: dict[str, Any] = {f"set_{field.name}": getattr(cls, field.name).__set__ for field in declared}
    scope |= {f"default_{field.name}": field.default for field in declared}
    parameters = [
        field.name if field.default is MISSING else f"{field.name}=default_{field.name}" for field in declared
    ]
    steps = "".join(f"\n    set_{field.name}(self, {field.name})" for field in declared)
    exec(f"def quick_init(self, {', '.join(parameters)}):{steps}", scope)  # noqa: S102 - as dataclasses do
    setattr(cls, "__init__", update_wrapper(scope["quick_init"], cls.__init__))  # noqa: B010 - mypy takes no method
    return cls


@_with_quick_init
@dataclass(frozen=True, slots=True)
class Usage:
    """
    Tokens of one request as the server counted them; None where it did not say.

    Attributes:
        input_tokens: Tokens of the prompt, cached ones included.
        output_tokens: Tokens of all choices together, reasoning included.
        cached_tokens: Part of ``input_tokens`` that the server took from its prefix cache.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


@_with_quick_init
@dataclass(frozen=True, slots=True)
class Completion:
    """
    One request's answer: ``n`` choices in the server's order.

    Attributes:
        texts: Length n.
        finish_reasons: Length n; None where the client's server does not say.
        reasoning: Length n; the thinking that a reasoning model returned beside its text, else None.
        usage: None where the client cannot know it; never estimated.
        model: The model's name as the server reports it.
        endpoint: The server's base URL, without credentials.
        attempts: Sends that reached the server until this answer came; 1 is the first.
        latency_s: Seconds from the last attempt's send to its full answer; None where not measured.
        logprobs: Length n or empty; the server's ``logprobs`` objects as they came.
        choice_errors: Length n or empty; ``kind: message`` for a choice that is no answer and has an empty text, e.g.
            because the server filtered it, else None. At least one choice is an answer.
        failures: The kinds of the failed sends before this answer, refused connections included. Not journaled.
    """

    texts: tuple[str, ...]
    finish_reasons: tuple[str | None, ...] = ()
    reasoning: tuple[str | None, ...] = ()
    usage: Usage | None = None
    model: str | None = None
    endpoint: str | None = None
    attempts: int = 1
    latency_s: float | None = None
    logprobs: tuple[Any, ...] = ()
    choice_errors: tuple[str | None, ...] = ()
    failures: tuple[str, ...] = ()

    def error_of(self, choice: int) -> str | None:
        """Return why the choice with this index, from 0, is no answer; None where it is one."""
        return self.choice_errors[choice] if choice < len(self.choice_errors) else None

    def after(self, failures: tuple[str, ...]) -> Completion:
        """Return this answer as one that came after failed sends of these kinds."""
        num_reached = len(failures) - failures.count(REFUSED)
        return replace(self, attempts=self.attempts + num_reached, failures=(*failures, *self.failures))


class Origin(Enum):
    """Where a row's answer came from: the server, the journal of an earlier run, or an identical request."""

    ASKED = "asked"
    JOURNAL = "journal"
    SHARED = "shared"


@_with_quick_init
@dataclass(frozen=True, slots=True)
class RowResult:
    """
    The result of one row in one output column: a value, or the reason why there is none.

    Attributes:
        value: The parsed answer; None where the row failed.
        error: None where the row did not fail, else ``kind: message``.
        completion: The answer behind it; None where the server never gave one.
        attempts: Sends that reached the server, the failed ones included; 0 where nothing was sent.
        origin: Where the answer came from.
        discarded: Earlier answers to this row that it could not use, so that it was asked again.
        num_parts: Requests whose answers make up the value; more than one where an answer was continued.
        recovery: What was done so that the row has an answer, e.g. ``reask`` or ``truncate_input+reask``; None where
            its first answer was good.
        failures: The kinds of the failed sends of this run, refused connections included.
    """

    value: Any = None
    error: str | None = None
    completion: Completion | None = None
    attempts: int = 0
    origin: Origin = Origin.ASKED
    discarded: tuple[Completion, ...] = ()
    num_parts: int = 1
    recovery: str | None = None
    failures: tuple[str, ...] = ()

    @property
    def error_kind(self) -> str | None:
        """The part of `error` before the colon: the class of failure that summaries group by."""
        return None if self.error is None else self.error.partition(":")[0]

    @property
    def is_cut_off(self) -> bool:
        """Whether one of the answer's texts ended because the number of tokens was limited."""
        if self.completion is None or self.completion.finish_reasons == _STOPPED:
            return False
        reasons = self.completion.finish_reasons
        return any(reason is not None and reason.strip().lower() in CUT_OFF_REASONS for reason in reasons)

    @property
    def is_asked(self) -> bool:
        """Whether something was sent for this answer."""
        return self.origin is Origin.ASKED and self.attempts > 0

    @property
    def usage(self) -> Usage | None:
        """Tokens of all answers to this row, the discarded ones included."""
        usages = [completion.usage for completion in (*self.discarded, self.completion) if completion is not None]
        return usages[0] if len(usages) == 1 else sum_usages(usages)


Outcome = Mapping[str, RowResult]
"""The results of one row: output column → its result, for each column of the stage."""


def sum_usages(usages: Iterable[Usage | None]) -> Usage | None:
    """Return the tokens of several requests together; a number that is known of none of them is None."""
    total = Usage()
    known = [usage for usage in usages if usage is not None]
    for usage in known:
        total = Usage(
            _sum(total.input_tokens, usage.input_tokens),
            _sum(total.output_tokens, usage.output_tokens),
            _sum(total.cached_tokens, usage.cached_tokens),
        )
    return total if known else None


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one + (other or 0)
