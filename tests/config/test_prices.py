"""List prices: only where none are given, only at the provider's own address, always with their date."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_llm_stage import ConfigError
from nemo_llm_stage.config.load import make_config
from nemo_llm_stage.config.prices import list_price

OPENAI = "https://api.openai.com/v1"


def config_of(url: Any = OPENAI, **settings: Any) -> Any:
    job = {
        "input": "in.parquet",
        "output": "out",
        "client": {"base_url": url},
        "model": "gpt-5-mini",
        "prompt": "{{ text }}",
        "output_column": "x",
    }
    return make_config(job | settings, "the test")


def test_a_known_model_of_its_provider_has_its_list_price() -> None:
    """Said with its date."""
    config = config_of()
    assert (config.settings.price_input, config.settings.price_output) == (0.25, 2.0)
    assert "list price of November 2026" in config.list_price.words
    assert config.list_price.source.startswith("https://developers.openai.com/")


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("http://localhost:8000/v1", {}),
        ([OPENAI, "http://localhost:8000/v1"], {}),
        (OPENAI, {"model": "gpt-9"}),
        ("https://api.openai.com.example.org/v1", {}),
    ],
)
def test_elsewhere_there_is_none(url: Any, settings: dict[str, Any]) -> None:
    """A model of this name on another server costs what it costs there."""
    config = config_of(url, **settings)
    assert (config.list_price, config.settings.price_input) == (None, None)


def test_prices_that_are_given_stand() -> None:
    """Also one alone."""
    settings = config_of(price_output=3.0).settings
    assert (settings.price_input, settings.price_output) == (None, 3.0)


def test_columns_of_different_prices_have_no_price_in_common() -> None:
    """A job has one price."""
    columns = [
        {"output_column": name, "prompt": "{{ text }}", "model": model}
        for name, model in (("a", "gpt-5.4"), ("b", "gpt-5-mini"))
    ]
    job = {"input": "in.parquet", "output": "out", "client": {"base_url": OPENAI}, "columns": columns}
    assert make_config(job, "the test").list_price is None


def test_a_list_price_is_no_ground_for_a_limit() -> None:
    """It may be old."""
    with pytest.raises(ConfigError, match="max_cost needs prices"):
        config_of(max_cost=3.0)


def test_a_snapshot_costs_what_its_model_costs() -> None:
    """Its name has a date."""
    assert list_price(OPENAI, "gpt-5-mini-2025-08-07") == list_price(OPENAI, "gpt-5-mini") is not None
