"""
What a worker, a partition or a job has done so far, as counts that add up.

Knows results; knows nothing of how they are shown or written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nemo_llm_stage.core import RATE_LIMITED, REFUSED, Origin, Outcome, RowResult, Usage


@dataclass(slots=True)
class Counters:
    """
    What a worker, a partition or a job has done so far; counts add up over any of them.

    Each finished row is one of answered, failed, skipped and dropped.

    Attributes:
        num_rows: Rows finished.
        num_failed: Rows with an error in one of their columns.
        num_skipped: Rows without one, that the settings left unasked in one of their columns.
        num_dropped: Rows that `keep_if` left out; not in the output.
        num_written: Rows of the output; more than were finished where each answer has a row of its own.
        num_resumed: Answers that an earlier run had paid for and journaled.
        num_shared: Answers to identical requests; nothing was sent for them.
        num_left_out: Rows of the input that could not be read; not part of `num_rows`.
        num_cut_off: Answered rows with an answer that ended at max_tokens.
        num_resumed_rows: Rows for which nothing was sent, because earlier runs had journaled their answers.
        num_attempts: Sends that reached a server, by this and earlier runs.
        num_wasted_attempts: Those that gave no answer worth keeping, rate-limited ones aside: they failed, or their row
            failed in the end.
        num_refused_connections: Sends that reached no server; not part of `num_attempts`, and nothing was paid.
        num_rate_limited: Sends answered by 429; part of `num_attempts`, and nothing was paid.
        num_failed_answers: Other failed sends. Like the two before, of the run that answered the row.
        num_second_sends: Part of `num_wasted_attempts`: rows sent a second time because their server was slow, so that
            one of both was of no use. What a cancelled request took in tokens, no server tells.
        input_tokens: As the servers counted them, over the answers that came.
        output_tokens: Likewise.
        cached_tokens: Likewise; part of `input_tokens`.
        wasted_output_tokens: Likewise; part of `output_tokens`, of answers that their row could not use.
        resumed_attempts: Part of `num_attempts` that earlier runs made, for answers that this run found journaled.
        resumed_wasted_attempts: Likewise of `num_wasted_attempts`.
        resumed_input_tokens: Likewise of `input_tokens`.
        resumed_output_tokens: Likewise of `output_tokens`.
        resumed_wasted_output_tokens: Likewise of `wasted_output_tokens`.
        errors: Failures by kind; a row may have one in each of its columns.
        examples: The newest whole error message of each kind.
        errors_by_column: Rows of the output that failed or were skipped, in each output column.
    """

    num_rows: int = 0
    num_failed: int = 0
    num_skipped: int = 0
    num_dropped: int = 0
    num_written: int = 0
    num_resumed: int = 0
    num_shared: int = 0
    num_left_out: int = 0
    num_cut_off: int = 0
    num_resumed_rows: int = 0
    num_attempts: int = 0
    num_wasted_attempts: int = 0
    num_refused_connections: int = 0
    num_rate_limited: int = 0
    num_failed_answers: int = 0
    num_second_sends: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    wasted_output_tokens: int = 0
    resumed_attempts: int = 0
    resumed_wasted_attempts: int = 0
    resumed_input_tokens: int = 0
    resumed_output_tokens: int = 0
    resumed_wasted_output_tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    errors_by_column: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Counters:
        """Return counts as they were written; ones that this version does not know are ignored."""
        return cls(**{name: values[name] for name in values.keys() & _FIELD_NAMES})

    def without_zeros(self) -> dict[str, Any]:
        """Return the counts that are not 0 or empty, for `of`."""
        return {name: value for name in _FIELD_NAMES if (value := getattr(self, name))}

    @property
    def num_answered(self) -> int:
        """Rows that have a value in each column."""
        return self.num_rows - self.num_failed - self.num_skipped - self.num_dropped

    def count(self, outcome: Outcome, *, is_dropped: bool = False) -> None:
        """Add one finished row. Of one that is dropped only what it cost is counted, not its errors."""
        self.num_rows += 1
        num_resumed, has_error, is_cut_off = self.num_resumed, False, False
        for result in outcome.values():
            if result.error is not None:
                has_error = True
            elif result.is_cut_off:
                is_cut_off = True
            self._count_cost(result)
        if is_dropped:
            self.num_dropped += 1
        elif has_error:
            self._count_errors({name: result.error for name, result in outcome.items()}, 1)
        elif is_cut_off:
            self.num_cut_off += 1
        if self.num_resumed > num_resumed and not any(result.is_asked for result in outcome.values()):
            self.num_resumed_rows += 1

    def take_back(self, errors: Mapping[str, str | None]) -> None:
        """Uncount a row that had failed and is asked again, by the errors of its columns; what it cost stays."""
        self.num_rows -= 1
        self._count_errors(errors, -1)

    def _count_errors(self, errors: Mapping[str, str | None], num: int) -> None:
        is_failed = False
        for name, error in errors.items():
            if error is None:
                continue
            _add_to(self.errors_by_column, name, num)
            kind = error.partition(":")[0]
            if kind == "skipped":
                continue
            is_failed = True
            _add_to(self.errors, kind, num)
            if kind in self.errors:
                if num > 0 or kind not in self.examples:
                    self.examples[kind] = error
            else:
                self.examples.pop(kind, None)
        if is_failed:
            self.num_failed += num
        else:
            self.num_skipped += num

    def _count_cost(self, result: RowResult) -> None:
        if result.origin is Origin.SHARED:
            self.num_shared += 1
            return
        if result.origin is Origin.JOURNAL:
            self._count_resumed(result)
        is_wasted = result.error is not None
        num_useless = result.attempts if is_wasted else result.attempts - result.num_parts
        if result.failures:
            num_useless -= self._count_failures(result.failures)
        self.num_attempts += result.attempts
        self.num_wasted_attempts += max(0, num_useless)
        for completion in result.discarded:
            self._count_usage(completion.usage, is_wasted=True)
        if result.completion is not None:
            self._count_usage(result.completion.usage, is_wasted=is_wasted)

    def _count_resumed(self, result: RowResult) -> None:
        """Add what an earlier run paid for a journaled answer."""
        cost = Counters()
        cost._count_cost(replace(result, origin=Origin.ASKED))
        self.num_resumed += 1
        self.resumed_attempts += cost.num_attempts
        self.resumed_wasted_attempts += cost.num_wasted_attempts
        self.resumed_input_tokens += cost.input_tokens
        self.resumed_output_tokens += cost.output_tokens
        self.resumed_wasted_output_tokens += cost.wasted_output_tokens

    def _count_failures(self, kinds: Sequence[str]) -> int:
        """Count failed sends; return how many of them reached a server that refused to work for them."""
        num_refused, num_limited = kinds.count(REFUSED), kinds.count(RATE_LIMITED)
        self.num_refused_connections += num_refused
        self.num_rate_limited += num_limited
        self.num_failed_answers += len(kinds) - num_refused - num_limited
        return num_limited

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
            num = getattr(other, name)
            if num:
                setattr(self, name, getattr(self, name) + num)
        for mine, others in ((self.errors, other.errors), (self.errors_by_column, other.errors_by_column)):
            for key, num in list(others.items()):
                _add_to(mine, key, num)
        self.examples.update(dict(other.examples))

    def as_second_send(self) -> Counters:
        """Return these counts of one row as the cost of a send that was of no use, as another one was faster."""
        cost = Counters(**{name: getattr(self, name) for name in COST_NAMES})
        cost.num_attempts = cost.num_wasted_attempts = max(1, self.num_attempts)
        cost.num_second_sends, cost.wasted_output_tokens = 1, self.output_tokens
        return cost

    def waste(self, outcome: Outcome) -> None:
        """Add what results took that were of no use, as another worker has answered their row."""
        cost = Counters()
        for result in outcome.values():
            cost._count_cost(result)
        cost.num_wasted_attempts, cost.wasted_output_tokens = cost.num_attempts, cost.output_tokens
        self.add(cost)

    def since(self, before: Counters) -> Counters:
        """Return what these counts have more than those of `before`, a moment earlier."""
        more = Counters(examples=dict(self.examples))
        for name in COUNTER_NAMES:
            setattr(more, name, getattr(self, name) - getattr(before, name))
        for mine, now, then in (
            (more.errors, self.errors, before.errors),
            (more.errors_by_column, self.errors_by_column, before.errors_by_column),
        ):
            mine.update({key: num - then.get(key, 0) for key, num in now.items() if num != then.get(key, 0)})
        return more

    def without_resumed(self) -> Counters:
        """Return these counts without what earlier runs had paid."""
        paid = sum_counters([self])
        paid.num_attempts = self.num_attempts - self.resumed_attempts
        paid.num_wasted_attempts = self.num_wasted_attempts - self.resumed_wasted_attempts
        paid.input_tokens = self.input_tokens - self.resumed_input_tokens
        paid.output_tokens = self.output_tokens - self.resumed_output_tokens
        paid.wasted_output_tokens = self.wasted_output_tokens - self.resumed_wasted_output_tokens
        return paid


def _add_to(counts: dict[str, int], key: str, num: int) -> None:
    counts[key] = counts.get(key, 0) + num
    if not counts[key]:
        del counts[key]


def sum_counters(parts: Iterable[Counters]) -> Counters:
    """Return the counts of all `parts` together."""
    total = Counters()
    for part in list(parts):
        total.add(part)
    return total


_FIELD_NAMES = {field.name for field in fields(Counters)}

COST_NAMES = (
    "num_resumed",
    "num_shared",
    "num_attempts",
    "num_wasted_attempts",
    "num_refused_connections",
    "num_rate_limited",
    "num_failed_answers",
    "num_second_sends",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "wasted_output_tokens",
    "num_resumed_rows",
    "resumed_attempts",
    "resumed_wasted_attempts",
    "resumed_input_tokens",
    "resumed_output_tokens",
    "resumed_wasted_output_tokens",
)
"""Counts of what rows cost."""

COUNTER_NAMES = (
    "num_rows",
    "num_failed",
    "num_skipped",
    "num_dropped",
    "num_written",
    "num_left_out",
    "num_cut_off",
    *COST_NAMES,
)
