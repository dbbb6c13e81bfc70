"""Mistakes of a first hour: each message says where, what, and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from nemo_llm_stage.cli import main
from nemo_llm_stage.config.yaml_text import parse_yaml
from nemo_llm_stage.testing import Fault, SimulatedServer


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("text", "number", "hint"),
    [
        ("input: a\nprompt: {{ text }}\n", 2, "Put the template in quotes"),
        ("input: a\nprompt: Rate: {{ text }}\n", 2, "Put the template in quotes"),
        ("prompt: {{ text }} in short\n", 1, "Put the template in quotes"),
        ("system_prompt: Rule: be brief\n", 1, 'it contains ": "'),
        ("client:\n\ttype: http\n", 2, "Indent with spaces"),
        ("client:\n  type: http\n base_url: x\n", 3, "Check the indentation"),
        ("prompt: @x\n", 1, "it begins with a character"),
        ('a: 1\nprompt: "x\n', 2, "Close the quotes"),
        ("input: a\nprompt: x\ninput: b\n", 3, "'input' stands in this mapping twice"),
        ("client:\n  timeout: 5\n  timeout: 6\n", 3, "'timeout' stands in this mapping twice"),
    ],
)
def test_broken_yaml_is_shown_with_its_line_and_a_hint(tmp_path: Path, text: str, number: int, hint: str) -> None:
    """The file, the line's number, the line, and one thing to do."""
    job = tmp_path / "job.yaml"
    job.write_text(text)
    result = invoke("run", job)
    assert result.exit_code == 2
    assert f"{str(job)!r}, line {number}, is not YAML:" in result.stderr
    assert text.splitlines()[number - 1].replace("\t", "→") in result.stderr
    assert hint in result.stderr
    assert "unicode string" not in result.stderr


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("max_tokens: 5", "generation_config.max_tokens"),
        ("temperature: 0.5", "generation_config.temperature"),
        ("base_url: http://x", "client.base_url"),
        ("max_concurrent_requests: 5", "client.max_concurrent_requests"),
        ("choices: [a, b]", "answer.choices"),
        ("client: {base_url: http://x, model: m}", "model"),
        ("client: {base_url: http://x, temperature: 1}", "generation_config.temperature"),
        ("columns: [{output_column: a, prompt: b, model: m, seed: 1}]", "generation_config.seed"),
    ],
)
def test_a_setting_in_the_wrong_place_is_told_its_place(tmp_path: Path, text: str, place: str) -> None:
    """Wherever it stands."""
    (tmp_path / "job.yaml").write_text(text)
    result = invoke("run", tmp_path / "job.yaml")
    assert result.exit_code == 2
    assert f"; write {place}\n" in f"{result.stderr}\n"


@pytest.mark.parametrize("words", [("Say", "{{", "text", "}}"), ("Say", "{{text}}")])
def test_a_prompt_without_quotes_is_hinted_at(words: tuple[str, ...]) -> None:
    """Whether one word is left over or several."""
    result = invoke("run", "--output", "out", "--prompt", *words)
    assert result.exit_code == 2
    assert "Put an option's value in quotes if it has spaces" in result.stderr


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """In words, before a request is paid for."""
    pd.DataFrame({"text": ["a"]}).to_parquet(tmp_path / "in.parquet")
    (tmp_path / "s.parquet").write_text("")
    with SimulatedServer() as server:
        result = invoke(
            *("run", "--input", tmp_path / "in.parquet", "--output", tmp_path / "s.parquet", "--model", "sim"),
            *("--base-url", server.base_url, "--prompt", "{{ text }}", "--output-column", "x", "--engine", "local"),
        )
        assert server.stats.num_requests == 0
    assert result.exit_code == 2
    assert "s.parquet' is a file; choose a folder" in result.stderr


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "strng"}}},
            '$.properties.a.type: "strng" is not a type; there are array, boolean',
        ),
        ({"type": "object", "required": "a"}, '$.required: "a" is not of type "array"'),
        ({"properties": {"a": {"$ref": "#/nope"}}}, "a $ref leads nowhere: Pointer '/nope' does not exist"),
    ],
)
def test_a_wrong_json_schema_is_told_by_its_place(tmp_path: Path, schema: Any, words: str) -> None:
    """In its file."""
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    result = invoke(
        *("run", "--input", "a", "--output", tmp_path / "out", "--client", "local", "--prompt", "p"),
        *("--output-column", "x", "--json-schema", path),
    )
    assert result.exit_code == 2
    assert f"{path}: the JSON Schema is wrong at" in result.stderr
    assert words in result.stderr


def test_a_retry_without_failed_rows_says_so(tmp_path: Path) -> None:
    """In one line; of a kind, it names the kinds there are."""
    pd.DataFrame({"text": ["a", "b"]}).to_parquet(tmp_path / "in.parquet")
    with SimulatedServer() as server:
        server.faults = [Fault(400, contains="a")]
        invoke(
            *("run", "--input", tmp_path / "in.parquet", "--output", tmp_path / "out", "--model", "sim"),
            *("--base-url", server.base_url, "--prompt", "{{ text }}", "--output-column", "x", "--engine", "local"),
        )
        result = invoke("retry-failed", tmp_path / "out", "--kind", "timeout")
        assert result.exit_code == 0, result.output
        assert "has no failed rows with the kind timeout; there are 1 x bad_request." in result.stdout
        server.faults = []
        assert "nothing to retry" not in invoke("retry-failed", tmp_path / "out").stdout
        result = invoke("retry-failed", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"nothing to retry: {tmp_path / 'out'} has no failed rows.\n"


def test_an_option_without_its_value_is_named() -> None:
    """As where a variable of the shell is empty."""
    result = CliRunner().invoke(main, ["run", "--base-url", "--prompt", "{{ text }}"])
    assert result.exit_code == 2
    assert "Option '--base-url' has no value; after it comes '--prompt'" in result.stderr


def test_an_empty_file_and_an_empty_model_are_told(tmp_path: Path) -> None:
    """Not the column that is not in the empty file, and no model of another name."""
    (tmp_path / "empty.jsonl").write_text("")
    words = ["run", "--output", tmp_path / "out", "--base-url", "http://127.0.0.1:9/v1", "--prompt", "{{ text }}"]
    words += ["--output-column", "x", "--engine", "local", "--input", tmp_path / "empty.jsonl"]
    assert "Columns: none; the input may be empty." in invoke(*words, "--model", "m").stderr
    assert "model is missing" in invoke(*words, "--model", "").stderr
    result = invoke(*words, "--model", "m", "--set", "generation_config=5")
    assert "generation_config: " in result.stderr
    assert result.exit_code == 2


def test_yaml_may_merge_what_it_overrides(tmp_path: Path) -> None:
    """A key of its own beside one that is merged is not twice there."""
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, x: 4}\n"
    assert parse_yaml(text, "it") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 4, "y": 2}}
