"""
List prices of a few models, for jobs that give no prices of their own. Shown with their date, never a limit.

Pure. An entry stands here only where the provider's own page was read; it has the page and the date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

_PAGE = "https://developers.openai.com/api/docs/models"

_PRICES: dict[str, dict[str, tuple[float, float, str, str]]] = {
    "api.openai.com": {
        "gpt-5-mini": (0.25, 2.00, "November 2026", f"{_PAGE}/gpt-5-mini"),
        "gpt-5-nano": (0.05, 0.40, "November 2026", f"{_PAGE}/gpt-5-nano"),
        "gpt-5.4-mini": (0.75, 4.50, "mid-2026", _PAGE),
        "gpt-5.4": (2.50, 15.00, "mid-2026", _PAGE),
        "gpt-5.5": (5.00, 30.00, "mid-2026", _PAGE),
    },
}
"""
Host → model → dollars for a million input tokens and for a million output tokens, the date and the page: standard
processing, short prompts, nothing cached.
"""


@dataclass(frozen=True, slots=True)
class ListPrice:
    """
    What a model costs by its provider's list.

    Attributes:
        input: Dollars for a million input tokens.
        output: Likewise for output tokens.
        date: When the page said so.
        source: The provider's page.
    """

    input: float
    output: float
    date: str
    source: str

    @property
    def words(self) -> str:
        """What a person should know of it."""
        return f"list price of {self.date}: ${self.input:g} and ${self.output:g} a million input and output tokens"


def list_price(base_url: str, model: str) -> ListPrice | None:
    """Return the price of a model at the provider whose address this is; None where it is not known."""
    name = re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model.removeprefix("models/"))
    price = _PRICES.get(urlsplit(base_url).hostname or "", {}).get(name)
    return None if price is None else ListPrice(*price)


def common_price(servers: Iterable[tuple[str, str]]) -> ListPrice | None:
    """Return the price that all of these base URLs and models have; None where there is no such price."""
    prices = {list_price(*server) for server in servers}
    return prices.pop() if len(prices) == 1 else None
