"""Before a job runs: a starter that works, a schema for editors, and a look at rows and what all would take."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

from nemo_llm_stage import GenerationConfig
from nemo_llm_stage.cli import main
from nemo_llm_stage.config.clients import HTTPClientConfig
from nemo_llm_stage.config.load import JobConfig, make_config
from nemo_llm_stage.job.preview import preview_job
from nemo_llm_stage.testing import Fault, SimulatedServer


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(answer=lambda body: f"len {len(body['messages'][-1]['content'])}") as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hundred rows in two files; their texts get longer."""
    (tmp_path / "in").mkdir()
    rows = [{"id": i, "text": "word " * (i + 1)} for i in range(100)]
    pq.write_table(pa.Table.from_pylist(rows[:60]), tmp_path / "in" / "a.parquet", row_group_size=25)
    (tmp_path / "in" / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[60:]))
    return tmp_path


def invoke(*arguments: Any) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(main, [str(argument) for argument in arguments])


def preview(server: SimulatedServer, folder: Path, *arguments: Any) -> Result:
    return invoke(
        *("preview", "--input", folder / "in", "--output", folder / "out", "--base-url", server.base_url),
        *("--model", "sim", "--prompt", "{{ id }}: {{ text }}", "--output-column", "x", *arguments),
    )


def config_of(folder: Path, **settings: Any) -> JobConfig:
    base = {"input": str(folder / "in"), "output": str(folder / "out"), "client": "local", "output_column": "x"}
    return make_config({**base, "prompt": "{{ id }}", **settings})


def ids(config: JobConfig, num_rows: int) -> list[int]:
    return [int(row.columns[0].messages[0]["content"]) for row in preview_job(config, num_rows, is_dry=True).rows]


def test_a_preview_asks_a_few_rows_and_writes_nothing(server: SimulatedServer, folder: Path) -> None:
    """Prompts, answers, tokens and latency are shown, and what all rows would take."""
    result = preview(server, folder, "-n", 3)
    assert result.exit_code == 0, result.output
    assert server.stats.num_requests == 3
    assert not (folder / "out").exists()
    for words in ("of 100", "user", "word word", "answer  len", "tokens in", "all 100 rows", "95% interval"):
        assert words in result.stdout


def test_the_rows_are_spread_over_the_dataset(folder: Path) -> None:
    """One out of each part, the same ones each time."""
    seen = ids(config_of(folder), 10)
    assert [i // 10 for i in seen] == list(range(10))
    assert seen == ids(config_of(folder, rows_per_partition=7), 10)
    assert seen != list(range(0, 100, 10))


def test_a_small_dataset_is_seen_whole(folder: Path) -> None:
    """Not more often than once a row."""
    assert ids(config_of(folder), 500) == list(range(100))


def test_an_uncounted_dataset_is_spread_over_too(folder: Path) -> None:
    """By bytes; its rows have no numbers then."""
    lines = [json.dumps({"id": i, "text": "x" * 2_000}) + "\n" for i in range(4_000)]
    (folder / "big").mkdir()
    (folder / "big" / "a.jsonl").write_text("".join(lines))
    config = config_of(folder, input=str(folder / "big"), scan_input="sample")
    seen = preview_job(config, 4, is_dry=True)
    assert [int(row.columns[0].messages[0]["content"]) // 1_000 for row in seen.rows] == [0, 1, 2, 3]
    assert not seen.is_exact
    assert [row.number for row in seen.rows] == [None] * 4


def test_a_dry_run_asks_nobody(server: SimulatedServer, folder: Path) -> None:
    """It needs no server, and shows what would be sent."""
    with server.outage():
        result = preview(server, folder, "--dry-run", "-n", 2, "--system-prompt", "Be [bold] brief.")
    assert result.exit_code == 0, result.output
    assert "Be [bold] brief." in result.stdout
    assert "100 rows; no requests were sent." in result.stdout
    assert server.stats.num_requests == 0


def test_a_prompt_that_says_the_shared_part_late_is_named(server: SimulatedServer, folder: Path) -> None:
    """With what it costs; the same prompt the other way round is fine."""
    rules = "Answer with one word and do not explain it. " * 20
    arguments = ("--dry-run", "-n", 1, "--price-input", "10")
    late = preview(server, folder, *arguments, "--prompt", "{{ id }}: " + rules)
    text = " ".join(late.stdout.split())
    assert "bytes of text that all rows share stand after {{ id }}" in text
    assert "about 213 tokens a row" in text
    assert "at the full price" in text
    assert "prefix cache" not in preview(server, folder, *arguments, "--prompt", rules + "{{ id }}").stdout


def test_a_late_shared_part_is_told_in_time_where_the_server_tells_its_speed(folder: Path) -> None:
    """By its metrics, which are read while it answers."""
    rules = "Answer with one word and do not explain it. " * 20
    with SimulatedServer(scheduler="batching", answer_tokens=150) as server:
        text = " ".join(preview(server, folder, "--prompt", "{{ id }}: " + rules).stdout.split())
    assert re.search(r"in all, [\d.]+ s at the [\d,]+ a second that the servers compute, are computed anew", text), text


def test_a_base_models_text_is_shown_as_it_is_sent(folder: Path) -> None:
    """Formatted."""
    config = config_of(folder, conversation_formatter="plain")
    [row] = preview_job(config, 1, is_dry=True).rows
    [column] = row.columns
    assert column.text == f"User: {column.messages[0]['content']}\n\nAssistant:"


def test_failures_are_shown_where_they_are(server: SimulatedServer, folder: Path) -> None:
    """Errors, skipped rows and re-asks, each with its row."""
    server.faults = [Fault(400, contains="user: 7")]
    result = preview(server, folder, "-n", 10, "--choices", "yes,no", "--skip-when", "id < 10")
    assert result.exit_code == 0, result.output
    assert "skip_when is true" in result.stdout
    assert "bad_request: HTTP 400" in result.stdout
    assert "is none of the choices" in result.stdout
    assert "3 attempts (reask)" in result.stdout


def test_parsed_values_are_shown_beside_the_answer(server: SimulatedServer, folder: Path) -> None:
    """Where they differ from it."""
    answer = "answer={pattern: '\\\\d+', arrow_type: int64}"
    result = preview(server, folder, "-n", 1, "--set", answer.replace("\\\\", "\\"))
    assert re.search(r"value   \d+ ", result.stdout), result.output


def test_prices_make_a_cost(server: SimulatedServer, folder: Path) -> None:
    """For all rows, from tokens in and out."""
    result = preview(server, folder, "-n", 100, "--price-input", 1_000_000, "--price-output", 0)
    tokens, cost = (re.search(rf"{name} +[\d,.]+ +([\d,.]+)", result.stdout)[1] for name in ("input tokens", "cost"))
    assert float(cost.replace(",", "")) == float(tokens.replace(",", "")) > 0


def test_long_texts_are_shortened_unless_wanted(server: SimulatedServer, folder: Path) -> None:
    """The middle is left out."""
    long = ("--prompt", "{{ 'begin ' ~ text * 900 ~ ' end' }}", "-n", 1, "--dry-run")
    assert "more characters" in preview(server, folder, *long).stdout
    assert "more characters" not in preview(server, folder, *long, "--full").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "{{ txt }}"], "'text'"),
        (["--set", "modle=x"], "did you mean 'model'"),
        (["--set", "model"], "must be key=value"),
        (["--choices", "a", "--json-schema", "b"], "give one of --choices and --json-schema"),
        (["--model", "nope"], "no model 'nope'"),
    ],
)
def test_a_preview_finds_what_a_run_would_trip_over(
    server: SimulatedServer, folder: Path, arguments: list[str], words: str
) -> None:
    """Without a traceback."""
    result = preview(server, folder, *arguments)
    assert result.exit_code in {1, 2}
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_field_columns_are_shown_at_the_end_of_a_run(folder: Path) -> None:
    """Together, as one answer."""
    schema = {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}
    (folder / "schema.json").write_text(json.dumps(schema))
    with SimulatedServer(answer=lambda _: '{"year": 1990}') as server:
        result = invoke(
            *("run", "--input", folder / "in", "--output", folder / "out", "--base-url", server.base_url),
            *("--model", "sim", "--prompt", "{{ text }}", "--output-column", "x", "--engine", "local"),
            *("--json-schema", folder / "schema.json", "--set", "field_columns=true", "--no-progress"),
        )
    assert result.exit_code == 0, result.output
    assert "{'year': 1990}" in result.stdout
    assert pq.read_schema(folder / "out" / "part-00000000.parquet").field("x_year").type == pa.int64()


def test_the_starter_runs_as_it_is_written(tmp_path: Path) -> None:
    """Here on a simulated server in the embedded model's place."""
    job = tmp_path / "job.yaml"
    assert invoke("init", job).exit_code == 0
    with SimulatedServer(answer=lambda _: "Food.") as server:
        where = ("--client", "http", "--base-url", server.base_url, "--model", "sim")
        assert invoke("preview", job, *where).exit_code == 0
        result = invoke("run", job, *where, "--no-progress")
    assert result.exit_code == 0, result.output
    out = pq.read_table(tmp_path / "job_output" / "part-00000000.parquet")
    assert out.column("topic").to_pylist() == ["food"] * 8


def test_the_starter_is_never_written_over_a_file(tmp_path: Path) -> None:
    """Neither the job nor its rows."""
    (tmp_path / "job.yaml").write_text("mine")
    result = invoke("init", tmp_path / "job.yaml")
    assert (result.exit_code, (tmp_path / "job.yaml").read_text()) == (2, "mine")


def test_the_starter_tells_of_every_setting(tmp_path: Path) -> None:
    """And each that is off works when it is taken in."""
    invoke("init", tmp_path / "job.yaml")
    text = (tmp_path / "job.yaml").read_text()
    on = yaml.safe_load(text)
    off = [
        yaml.safe_load(re.sub(r"^#", "", block, flags=re.MULTILINE))
        for block in re.findall(r"^#\w+:.*\n(?:#  .*\n)*", text, re.MULTILINE)
    ]
    assert {*on, *(key for block in off for key in block)} == set(JobConfig.model_fields)
    server = {"base_url": "http://localhost:8000/v1"}
    one_column = {"prompt", "messages", "output_column", "answer"}
    for block in off:
        both = {"client": server, "model": "m", **on, **({"client": server} if "model" in block else {}), **block}
        for key in block:
            both.pop(key.removesuffix("_file") if key.endswith("_file") else "", None)
        if "columns" in block:
            both = {key: value for key, value in both.items() if key not in one_column}
        if "max_cost" in block:
            both = both | {"price_input": 0.1, "price_output": 0.4}
        if "explode" in block:
            both = both | {"generation_config": {"n": 2}}
        if "gpu_price_per_hour" in block:
            both = both | {"gpus": 8}
        if "servers" in block:
            both = both | {"client": {"base_url": "servers"}}
        make_config(both)
    client = next(block["client"] for block in off if "client" in block)
    assert {*client, "api_key_file"} == set(HTTPClientConfig.model_fields)
    parameters = set(re.findall(r"^#?  (\w+): ", text.partition("generation_config:")[2], re.MULTILINE))
    assert parameters >= {field.name for field in fields(GenerationConfig)}


def test_the_schema_is_printed_for_editors() -> None:
    """As JSON."""
    schema = json.loads(invoke("schema").stdout)
    assert schema["properties"]["output_column"]["description"] == "Name of the column to add."


CHAIN = """
input: in
output: out
client: {base_url: URL}
model: sim
columns:
  - {output_column: first, prompt: "First {{ id }}"}
  - {output_column: second, prompt: "Second {{ first }}"}
keep_if: first != 'len 8'
"""


def test_a_preview_of_several_columns_shows_each(
    server: SimulatedServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later prompt with the answer it uses, and whether the row would be dropped."""
    monkeypatch.chdir(folder)
    Path("job.yaml").write_text(CHAIN.replace("URL", server.base_url))
    result = invoke("preview", "job.yaml", "-n", 2)
    assert result.exit_code == 0, result.output
    for words in ("first", "second", "First ", "Second len 8", "keep_if is false", "tokens in", "all 100 rows"):
        assert words in result.stdout
    assert server.stats.num_requests == 3  # the same text twice is rated once


def test_a_dry_preview_says_what_a_prompt_waits_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody was asked for the answer that it uses."""
    monkeypatch.chdir(folder)
    Path("job.yaml").write_text(CHAIN.replace("URL", "http://127.0.0.1:1/v1"))
    result = invoke("preview", "job.yaml", "-n", 1, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "waits for the answer of first" in result.stdout
