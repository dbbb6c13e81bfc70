"""
What holds requests back beside the number in flight: a pause, and an allowance of requests, tokens and money.

An allowance is given ahead and in portions by whoever divides a budget or a rate among several processes. Knows counts;
knows nothing of budgets, of clocks, or of who gives it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from nemo_llm_stage.core import Usage

FIRST_GUESS_TOKENS = 1000.0
"""Tokens of a request, prompt and answer together, that are reserved before the first answer told a mean."""


@dataclass(frozen=True, slots=True)
class Spending:
    """
    What requests took since a process began.

    Attributes:
        num_requests: Sends, failed ones included.
        num_answers: Answers.
        input_tokens: Of the answers, as the servers counted them.
        output_tokens: Likewise.
    """

    num_requests: int = 0
    num_answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of prompts and answers together."""
        return self.input_tokens + self.output_tokens

    def cost(self, price_input: float | None, price_output: float | None) -> float:
        """Return the cost in dollars at these prices of a million tokens; None counts as 0."""
        return (self.input_tokens * (price_input or 0) + self.output_tokens * (price_output or 0)) / 1e6

    def __add__(self, other: Spending) -> Spending:
        """Return the spending of both."""
        return Spending(
            self.num_requests + other.num_requests,
            self.num_answers + other.num_answers,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """
    How much may be spent in all since the process began. A request is sent only where something of each is left.

    Attributes:
        num_requests: Sends.
        num_tokens: Tokens of prompts and answers. Requests in flight count with the mean of the answers so far.
        output_tokens: Tokens of answers. Those of requests in flight are not counted.
        cost: Dollars, likewise.
        price_input: Dollars of a million input tokens.
        price_output: Dollars of a million output tokens.
    """

    num_requests: float = math.inf
    num_tokens: float = math.inf
    output_tokens: float = math.inf
    cost: float = math.inf
    price_input: float = 0.0
    price_output: float = 0.0


UNLIMITED = Grant()


@dataclass(frozen=True, slots=True)
class Throttle:
    """
    How requests are held back from now on.

    Attributes:
        is_paused: Whether none are started. Those in flight end.
        max_concurrent_requests: Most requests in flight, for each client; None leaves what the client was made with.
        grant: How much may be spent.
    """

    is_paused: bool = False
    max_concurrent_requests: int | None = None
    grant: Grant = UNLIMITED


OPEN = Throttle()


class Held(Protocol):
    """What an allowance holds back."""

    in_flight: int

    def wake(self) -> None:
        """Let in who may enter now."""


class Allowance:
    """
    Counts what the requests of one process spend, against what was granted. Belongs to one event loop.

    Args:
        limits: Of the clients that spend it together.
    """

    def __init__(self, limits: Iterable[Held]) -> None:
        self._limits = tuple(limits)
        self._grant = UNLIMITED
        self._is_limited = False
        self._num_requests = 0
        self._num_answers = 0
        self._input_tokens = 0
        self._output_tokens = 0

    @property
    def spending(self) -> Spending:
        """What was spent so far. May be read from any thread."""
        return Spending(self._num_requests, self._num_answers, self._input_tokens, self._output_tokens)

    @property
    def is_left(self) -> bool:
        """Whether another request may be sent."""
        if not self._is_limited:
            return True
        grant, spending = self._grant, self.spending
        return (
            spending.num_requests < grant.num_requests
            and spending.output_tokens < grant.output_tokens
            and spending.cost(grant.price_input, grant.price_output) < grant.cost
            and spending.num_tokens + self._reserved_tokens() < grant.num_tokens
        )

    def grant(self, grant: Grant) -> None:
        """Replace the grant, and let requests in that may be sent now."""
        self._grant, self._is_limited = grant, grant != UNLIMITED
        for limit in self._limits:
            limit.wake()

    def note_sends(self, num: int = 1) -> None:
        """Count sends; a negative number takes back ones that were not made."""
        self._num_requests += num

    def note_answer(self, usage: Usage | None) -> None:
        """Count an answer."""
        self._num_answers += 1
        if usage is not None:
            self._input_tokens += usage.input_tokens or 0
            self._output_tokens += usage.output_tokens or 0

    def _reserved_tokens(self) -> float:
        num_tokens = self._input_tokens + self._output_tokens
        mean = num_tokens / self._num_answers if num_tokens else FIRST_GUESS_TOKENS
        return mean * sum(limit.in_flight for limit in self._limits)
