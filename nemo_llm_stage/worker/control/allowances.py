"""
Divides budgets and rates among workers: small portions, given ahead and by need, so that nothing waits for an answer.

What is granted counts as spent, so the workers together never send more than was given. Tokens are known only
when an answer is there: those of the requests in flight come on top. Knows numbers; knows nothing of workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from nemo_llm_stage.client.throttle import FIRST_GUESS_TOKENS, UNLIMITED, Grant, Spending
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.worker.orders import Need

BURST_S = 2.0
"""Seconds of a rate that may be saved up while nobody needs it."""

BUDGETS = ("max_requests", "max_output_tokens", "max_cost")
NUM_IDLE_REPORTS = 3
"""Where so many reports of each worker in a row say that it cannot go on, what is left of a budget reaches nobody. The
report after one that brought rows or a grant tells of them, so two would do."""

RATES = ("requests_per_minute", "tokens_per_minute")


@dataclass(slots=True)
class _Account:
    """One worker's: its last need, what it was granted of each limit since it began, reports without work in a row."""

    need: Need = field(default_factory=Need)
    granted: dict[str, float] = field(default_factory=dict)
    appetite: float = 1.0
    num_idle: int = 0


class Allowances:
    """
    The budgets and rates of one run. Not for several threads.

    Args:
        settings: Have the limits.
        before: What earlier runs of the job spent; it counts towards the budgets.
        max_concurrent_requests: Of each worker.
    """

    def __init__(self, settings: JobSettings, before: Spending, max_concurrent_requests: int) -> None:
        self.settings = settings
        self.max_concurrent_requests = max_concurrent_requests
        self._lost = before
        self._accounts: dict[str, _Account] = {}
        self._buckets: dict[str, float] = {}
        self._filled_at_s = math.nan

    @property
    def spending(self) -> Spending:
        """What all runs of the job spent, as far as the workers have reported."""
        return sum((account.need.spending for account in self._accounts.values()), self._lost)

    def grant_of(self, worker: str, need: Need, now_monotonic_s: float) -> Grant:
        """Return what `worker` may spend in all since it began."""
        account = self._accounts.setdefault(worker, _Account())
        num_sent = need.spending.num_requests - account.need.spending.num_requests
        is_idle = not (num_sent or need.num_in_flight or need.num_retrying) and not self._can_go_on(account, need)
        account.num_idle = account.num_idle + 1 if is_idle else 0
        account.need, account.appetite = need, self.max_concurrent_requests + 2 * num_sent
        limits = [name for name in (*BUDGETS, *RATES) if getattr(self.settings, name) is not None]
        if not limits:
            return UNLIMITED
        self._fill(now_monotonic_s)
        granted = {name: self._grant(name, account) for name in limits}
        return Grant(
            num_requests=min(granted.get("max_requests", math.inf), granted.get("requests_per_minute", math.inf)),
            num_tokens=granted.get("tokens_per_minute", math.inf),
            output_tokens=granted.get("max_output_tokens", math.inf),
            cost=granted.get("max_cost", math.inf),
            price_input=self.settings.price_input or 0.0,
            price_output=self.settings.price_output or 0.0,
        )

    def forget(self, worker: str) -> None:
        """Close the account of a worker that died: what it reported stays spent."""
        account = self._accounts.pop(worker, None)
        if account is not None:
            self._lost = self._lost + account.need.spending

    def reached(self) -> str | None:
        """Return which budget is spent, in words; None where there is something left of each."""
        for name in BUDGETS:
            limit = getattr(self.settings, name)
            if limit is None:
                continue
            spent = self._amount(name, self.spending)
            if spent >= limit or (self._left(name) < self._least(name) and self._is_stuck()):
                return f"{name} = {limit:g} is reached ({spent:,.6g} spent)"
        return None

    def _is_stuck(self) -> bool:
        """Whether no worker can use what it was granted: it has none left, or no rows."""
        return all(account.num_idle >= NUM_IDLE_REPORTS for account in self._accounts.values())

    def _can_go_on(self, account: _Account, need: Need) -> bool:
        """Whether a worker has rows, and something left of each budget that it was granted by its last report."""
        return need.num_waiting > 0 and all(
            account.granted[name] - self._amount(name, need.spending) >= self._least(name)
            for name in BUDGETS
            if name in account.granted
        )

    def _grant(self, name: str, account: _Account) -> float:
        """Add a portion to what the account was granted of one limit, and return the whole."""
        spent = self._amount(name, account.need.spending)
        before = account.granted.get(name, spent)
        granted = max(before, spent)
        is_rate = name in RATES
        if is_rate:
            self._buckets[name] -= granted - before  # tokens that turned out to be more than was granted
        left = self._buckets[name] if is_rate else self._left(name)
        unit = self._mean(name)
        want = account.appetite * unit - (granted - spent)
        if want > 0 and left >= self._least(name):
            share = left * want / max(want, sum(self._want(name, other, unit) for other in self._accounts.values()))
            portion = min(want, max(share, min(left, unit)))
            portion = math.floor(portion) if "requests" in name else portion
            granted += portion
            if is_rate:
                self._buckets[name] -= portion
        account.granted[name] = granted
        return granted

    def _want(self, name: str, account: _Account, unit: float) -> float:
        spent = self._amount(name, account.need.spending)
        return max(0.0, account.appetite * unit - max(0.0, account.granted.get(name, 0.0) - spent))

    def _left(self, name: str) -> float:
        """Return what is left of a budget: nothing that is spent or granted."""
        used = sum(
            max(account.granted.get(name, 0.0), self._amount(name, account.need.spending))
            for account in self._accounts.values()
        )
        limit: float = getattr(self.settings, name)
        return limit - self._amount(name, self._lost) - used

    def _least(self, name: str) -> float:
        return 1.0 if "requests" in name else 1e-9

    def _fill(self, now_monotonic_s: float) -> None:
        elapsed_s = 0.0 if math.isnan(self._filled_at_s) else now_monotonic_s - self._filled_at_s
        self._filled_at_s = now_monotonic_s
        for name in RATES:
            limit = getattr(self.settings, name)
            if limit is not None:
                per_s = limit / 60
                full = self._buckets.get(name, 1.0) + per_s * elapsed_s
                self._buckets[name] = min(full, max(1.0, per_s * BURST_S))

    def _amount(self, name: str, spending: Spending) -> float:
        amounts: dict[str, Callable[[], float]] = {
            "max_requests": lambda: spending.num_requests,
            "requests_per_minute": lambda: spending.num_requests,
            "max_output_tokens": lambda: spending.output_tokens,
            "tokens_per_minute": lambda: spending.num_tokens,
            "max_cost": lambda: spending.cost(self.settings.price_input, self.settings.price_output),
        }
        return amounts[name]()

    def _mean(self, name: str) -> float:
        """Return what a request takes of a limit on average; a guess before the first answer."""
        if "requests" in name:
            return 1.0
        spending = self.spending
        amount, num = self._amount(name, spending), spending.num_answers
        if not num or not amount:
            guess = Spending(1, 1, int(FIRST_GUESS_TOKENS * 3 / 4), int(FIRST_GUESS_TOKENS / 4))
            return max(1e-9, self._amount(name, guess))
        return amount / num
