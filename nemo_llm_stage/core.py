"""
The nouns that every room shares: what an answer is and what a row comes to.

Frozen, slotted, standard library only. Knows nothing of HTTP, tables, files or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class RowResult:
    """
    What one row of one output column came to: a value, or the reason why there is none.

    Attributes:
        value: The parsed answer; None where the row failed.
        error: None where the row did not fail, else ``kind: message``.
        completion: The answer behind it; None where the server never gave one.
        attempts: Sends it took, the failed ones included; 0 where nothing was sent.
        is_reused: True where the answer came from the journal or an identical request, so nothing was sent.
    """

    value: Any = None
    error: str | None = None
    completion: Completion | None = None
    attempts: int = 0
    is_reused: bool = False

    @property
    def error_kind(self) -> str | None:
        """The part of `error` before the colon: the class of failure that summaries group by."""
        return None if self.error is None else self.error.partition(":")[0]
