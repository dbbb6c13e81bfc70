"""Generation parameters may come from the row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from nemo_llm_stage import AsyncHTTPClient, ConfigError, GenerationConfig, InputError, LLMStage
from nemo_llm_stage.testing import ScriptedClient, SimulatedServer


def make_stage(client: Any, **generation: Any) -> LLMStage:
    return LLMStage(
        client=client, model="sim", prompt="{{ text }}", output_column="x", generation_config=generation, has_meta=False
    )


def process(stage: LLMStage, **columns: list[Any]) -> list[dict[str, Any]]:
    try:
        return stage.process(pa.table({"text": ["same"] * len(next(iter(columns.values()))), **columns})).to_pylist()
    finally:
        stage.close()


def test_each_row_is_asked_with_its_own_parameters() -> None:
    """Identical prompts are different requests then."""
    with SimulatedServer() as server:
        stage = make_stage(
            AsyncHTTPClient(server.base_url), temperature="{{ t }}", seed="{{ number + 1 }}", max_tokens="{{ n }}"
        )
        assert stage.required_columns == {"text", "t", "number", "n"}
        process(stage, t=[0.5, 1.0], number=[1, 2], n=["10", "20"])
        asked = {(r.body["temperature"], r.body["seed"], r.body["max_tokens"]) for r in server.requests}
    assert asked == {(0.5, 2, 10), (1.0, 3, 20)}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "prompt: generation_config: temperature is null; it must be a number from 0"),
        (-1.0, "prompt: generation_config: temperature is -1.0; it must be a number from 0"),
        (float("nan"), "prompt: generation_config: temperature is null; it must be a number from 0"),
    ],
)
def test_a_parameter_that_cannot_be_fails_its_row(value: Any, words: str) -> None:
    """And no other."""
    stage = make_stage(ScriptedClient(["a"]), temperature="{{ t }}")
    rows = process(stage, t=pa.array([value, 1.0], pa.float64()))
    assert [row["x_error"] for row in rows] == [words, None]


def test_a_whole_number_must_be_one() -> None:
    """Half a token is a mistake in the data."""
    rows = process(make_stage(ScriptedClient(["a"]), max_tokens="{{ t }}"), t=[1.5, 2.0])
    assert rows[0]["x_error"] == "prompt: generation_config: max_tokens is 1.5; it must be a whole number from 1"
    assert rows[1]["x"] == "a"


def test_a_row_of_its_own_parameters_recovers_with_them() -> None:
    """Twice the tokens that the row had asked for."""
    with SimulatedServer(answer=lambda _: "one two three four five six seven eight") as server:
        stage = LLMStage(
            client=AsyncHTTPClient(server.base_url),
            model="sim",
            prompt="{{ text }}",
            output_column="x",
            generation_config=GenerationConfig(max_tokens="{{ t }}"),  # type: ignore[arg-type]
            on_truncated="retry_longer",
        )
        [row] = process(stage, t=[5])
        assert [request.body["max_tokens"] for request in server.requests] == [5, 10]
    assert row["x"] == "one two three four five six seven eight"


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        ({"temperature": "warm"}, "temperature is 'warm'; give a number, or"),
        ({"n": "{{ t }}"}, "n must be a number"),
        ({"seed": "{{ t"}, "seed: .* must be one expression"),
    ],
)
def test_what_is_no_expression_is_refused(generation: dict[str, Any], words: str) -> None:
    """When the stage is made."""
    with pytest.raises(ConfigError, match=words):
        make_stage(ScriptedClient([]), **generation)


def test_a_missing_column_is_told() -> None:
    """Before anything is asked."""
    with pytest.raises(InputError, match="'temp'"):
        make_stage(ScriptedClient([]), temperature="{{ temp }}").check_columns(["text"])


def test_a_temperature_of_the_rows_is_not_taken_for_none() -> None:
    """Sampled answers are shared only with a seed."""
    assert not make_stage(ScriptedClient([]), temperature="{{ t }}", seed=None).column.deduplicate
    assert make_stage(ScriptedClient([]), temperature="{{ t }}", seed="{{ s }}").column.deduplicate
