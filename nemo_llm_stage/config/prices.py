"""
List prices of a few providers' models, for jobs that give no prices of their own. Shown with their date, never a limit.

Pure. Source: the providers' price pages, https://platform.openai.com/docs/pricing and
https://ai.google.dev/gemini-api/docs/pricing, as of `DATE`: standard processing, short prompts, nothing cached.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

DATE = "March 2026"

_PRICES: dict[str, dict[str, tuple[float, float]]] = {
    "api.openai.com": {
        "gpt-4o": (2.50, 10.00),
        "gpt-4o-mini": (0.15, 0.60),
        "gpt-4.1": (2.00, 8.00),
        "gpt-4.1-mini": (0.40, 1.60),
        "gpt-4.1-nano": (0.10, 0.40),
        "gpt-5": (1.25, 10.00),
        "gpt-5-mini": (0.25, 2.00),
        "gpt-5-nano": (0.05, 0.40),
    },
    "generativelanguage.googleapis.com": {
        "gemini-2.5-pro": (1.25, 10.00),
        "gemini-2.5-flash": (0.30, 2.50),
        "gemini-2.5-flash-lite": (0.10, 0.40),
    },
}
"""Host → model → dollars for a million input tokens, and for a million output tokens."""


@dataclass(frozen=True, slots=True)
class ListPrice:
    """
    What a model costs by its provider's list.

    Attributes:
        input: Dollars for a million input tokens.
        output: Likewise for output tokens.
    """

    input: float
    output: float

    @property
    def words(self) -> str:
        """What a person should know of it."""
        return f"list price of {DATE}: ${self.input:g} and ${self.output:g} a million input and output tokens"


def list_price(base_url: str, model: str) -> ListPrice | None:
    """Return the price of a model at the provider whose address this is; None where it is not known."""
    name = re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model.removeprefix("models/"))
    price = _PRICES.get(urlsplit(base_url).hostname or "", {}).get(name)
    return None if price is None else ListPrice(*price)


def common_price(servers: Iterable[tuple[str, str]]) -> ListPrice | None:
    """Return the price that all of these base URLs and models have; None where there is no such price."""
    prices = {list_price(*server) for server in servers}
    return prices.pop() if len(prices) == 1 else None
