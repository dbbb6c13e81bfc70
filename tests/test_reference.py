"""The reference and `explain`: an entry for everything, each found by the words that people have."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from nemo_llm_stage.advice import ADVICE, error_classes
from nemo_llm_stage.cli import main
from nemo_llm_stage.testing import Fault, SimulatedServer


def explain(*words: str) -> Result:
    return CliRunner().invoke(main, ["explain", *words])


def test_every_kind_of_error_has_a_cause_and_a_next_step() -> None:
    """And no advice is left of a kind that is gone."""
    assert {error.kind for error in error_classes()} == set(ADVICE)
    assert all(advice.cause and advice.next_step for advice in ADVICE.values())


@pytest.mark.parametrize("word", ["max_tokens", "generation_config.max_tokens", "--max-tokens"])
def test_a_setting_is_found_by_its_place_its_name_and_its_option(word: str) -> None:
    """With type, default and meaning."""
    shown = explain("--", word).stdout
    assert "generation_config.max_tokens" in shown
    assert "2048" in shown
    assert "Most output tokens" in shown


@pytest.mark.parametrize("word", ["rate_limit", "RateLimitError"])
def test_an_error_is_found_by_its_kind_and_its_class(word: str) -> None:
    """With its cause and what to do."""
    shown = explain(word).stdout
    assert "status 429" in shown
    assert "what to do" in shown


def test_an_unknown_name_gets_the_nearest_one() -> None:
    """And exit code 2."""
    result = explain("ratelimit")
    assert result.exit_code == 2
    assert "did you mean 'rate_limit'?" in result.stderr


def test_without_a_name_all_are_listed() -> None:
    """Settings and kinds."""
    shown = explain().stdout
    assert "client.base_url" in shown
    assert "context_overflow" in shown


def test_the_table_of_failures_names_the_command(tmp_path: Path) -> None:
    """For the kind that most rows failed with."""
    pd.DataFrame({"text": [f"row {i}" for i in range(20)]}).to_parquet(tmp_path / "in.parquet")
    with SimulatedServer() as server:
        server.faults = [Fault(400, contains="row 3")]
        words = ["run", "--input", tmp_path / "in.parquet", "--output", tmp_path / "out", "--engine", "local"]
        words += ["--base-url", server.base_url, "--model", "sim", "--prompt", "{{ text }}", "--output-column", "x"]
        result = CliRunner().invoke(main, [str(word) for word in words])
    assert "nemo-llm-stage explain bad_request" in result.stdout
