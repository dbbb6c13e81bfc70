"""
The nouns that every room shares: what an answer is and what a row comes to.

Frozen, slotted, standard library only. Knows nothing of HTTP, tables, files or Ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Message = dict[str, Any]
"""One chat turn as the OpenAI protocol writes it: ``{"role": …, "content": …}``."""


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
        attempts: Sends it took; 1 is the first.
        latency_s: Seconds from the last attempt's send to its full answer; None where not measured.
        logprobs: Length n or empty; the server's ``logprobs`` objects as they came.
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


class Origin(Enum):
    """Where a row's answer came from: the server, the journal of an earlier run, or an identical request."""

    ASKED = "asked"
    JOURNAL = "journal"
    SHARED = "shared"


@dataclass(frozen=True, slots=True)
class RowResult:
    """
    What one row of one output column came to: a value, or the reason why there is none.

    Attributes:
        value: The parsed answer; None where the row failed.
        error: None where the row did not fail, else ``kind: message``.
        completion: The answer behind it; None where the server never gave one.
        attempts: Sends that the answer or the failure took, the failed ones included; 0 where nothing was sent.
        origin: Where the answer came from.
        discarded: Earlier answers to this row that it could not use, so that it was asked again.
        num_parts: Requests whose answers make up the value; more than one where an answer was continued.
        recovery: What was done so that the row has an answer, e.g. ``reask`` or ``truncate_input+reask``; None where
            its first answer was good.
    """

    value: Any = None
    error: str | None = None
    completion: Completion | None = None
    attempts: int = 0
    origin: Origin = Origin.ASKED
    discarded: tuple[Completion, ...] = ()
    num_parts: int = 1
    recovery: str | None = None

    @property
    def error_kind(self) -> str | None:
        """The part of `error` before the colon: the class of failure that summaries group by."""
        return None if self.error is None else self.error.partition(":")[0]

    @property
    def usage(self) -> Usage | None:
        """Tokens of all answers to this row, the discarded ones included."""
        usages = [completion.usage for completion in (*self.discarded, self.completion) if completion is not None]
        return usages[0] if len(usages) == 1 else sum_usages(usages)


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


@dataclass(slots=True)
class Counters:
    """
    What a worker, a partition or a job has done so far; counts add up over any of them.

    Attributes:
        num_rows: Rows finished: answered, failed and skipped.
        num_failed: Rows finished with an error.
        num_skipped: Rows that the settings left unasked.
        num_resumed: Rows whose answer an earlier run had paid for and journaled.
        num_shared: Rows that share the answer of an identical request; nothing was sent for them.
        num_left_out: Rows of the input that could not be read; not part of `num_rows`.
        num_attempts: Sends, by this and earlier runs.
        num_wasted_attempts: Sends that gave no answer worth keeping: failed, or of a row that failed in the end.
        input_tokens: As the servers counted them, over the answers that came.
        output_tokens: Likewise.
        cached_tokens: Likewise; part of `input_tokens`.
        wasted_output_tokens: Likewise; part of `output_tokens`, of answers that their row could not use.
        errors: Failed rows by kind.
        examples: One whole error message for each kind.
    """

    num_rows: int = 0
    num_failed: int = 0
    num_skipped: int = 0
    num_resumed: int = 0
    num_shared: int = 0
    num_left_out: int = 0
    num_attempts: int = 0
    num_wasted_attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    wasted_output_tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def num_answered(self) -> int:
        """Rows that have a value."""
        return self.num_rows - self.num_failed - self.num_skipped

    def count(self, result: RowResult) -> None:
        """Add one finished row."""
        self.num_rows += 1
        if result.error is not None:
            self._count_error(result.error)
        if result.origin is Origin.SHARED:
            self.num_shared += 1
            return
        if result.origin is Origin.JOURNAL:
            self.num_resumed += 1
        is_wasted = result.error is not None
        self.num_attempts += result.attempts
        self.num_wasted_attempts += result.attempts if is_wasted else max(0, result.attempts - result.num_parts)
        for completion in result.discarded:
            self._count_usage(completion.usage, is_wasted=True)
        if result.completion is not None:
            self._count_usage(result.completion.usage, is_wasted=is_wasted)

    def _count_usage(self, usage: Usage | None, *, is_wasted: bool) -> None:
        if usage is None:
            return
        self.input_tokens += usage.input_tokens or 0
        self.output_tokens += usage.output_tokens or 0
        self.cached_tokens += usage.cached_tokens or 0
        self.wasted_output_tokens += (usage.output_tokens or 0) if is_wasted else 0

    def add(self, other: Counters) -> None:
        """Add another's counts to these."""
        for name in COUNTER_NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for kind, num in list(other.errors.items()):
            self.errors[kind] = self.errors.get(kind, 0) + num
        for kind, example in list(other.examples.items()):
            self.examples.setdefault(kind, example)

    def take_back(self, errors: Iterable[str]) -> None:
        """Uncount rows that had failed with these errors and are asked again; what they cost stays."""
        for error in errors:
            kind = error.partition(":")[0]
            self.num_rows -= 1
            self.num_failed -= 1
            self.errors[kind] -= 1
            if not self.errors[kind]:
                del self.errors[kind]
                self.examples.pop(kind, None)

    def _count_error(self, error: str) -> None:
        kind = error.partition(":")[0]
        if kind == "skipped":
            self.num_skipped += 1
            return
        self.num_failed += 1
        self.errors[kind] = self.errors.get(kind, 0) + 1
        self.examples.setdefault(kind, error)


def sum_counters(parts: Iterable[Counters]) -> Counters:
    """Return the counts of all `parts` together."""
    total = Counters()
    for part in list(parts):
        total.add(part)
    return total


COUNTER_NAMES = (
    "num_rows",
    "num_failed",
    "num_skipped",
    "num_resumed",
    "num_shared",
    "num_left_out",
    "num_attempts",
    "num_wasted_attempts",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "wasted_output_tokens",
)
