"""A job file becomes a stage: every setting is reachable, and every mistake is told in terms of the file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pyarrow as pa
import pytest

from nemo_llm_stage import AsyncHTTPClient, ConfigError
from nemo_llm_stage.config.load import JobConfig, make_config, override, read_job_file
from nemo_llm_stage.config.schema import json_schema
from nemo_llm_stage.testing import SimulatedServer

BASE: dict[str, Any] = {
    "input": "in.parquet",
    "output": "out",
    "client": {"base_url": "http://127.0.0.1:1/v1"},
    "model": "sim",
    "prompt": "Say {{ text }}",
    "output_column": "x",
}


def config_of(**settings: Any) -> JobConfig:
    return make_config({**BASE, **settings})


def ask(server: SimulatedServer, rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """Return the new columns of `rows`."""
    config = config_of(client={"base_url": server.base_url}, has_meta=False, **settings)
    with config.open_stage() as stage:
        out = stage.process(pa.Table.from_pylist(rows))
        stage.close()
    return out.select([field.name for field in stage.fields]).to_pylist()


def replying(text: str) -> SimulatedServer:
    return SimulatedServer(answer=lambda _: text)


@pytest.mark.parametrize(
    ("answer", "text", "value"),
    [
        ("text", " as it is", " as it is"),
        ({"choices": ["good", "bad"]}, "Good.", "good"),
        ({"type": "choices", "choices": [0, 1, 2]}, "2", "2"),
        ({"choices": ["a", "b"], "guided": "json"}, '"b"', "b"),
        ({"choices": ["a"], "logprobs": True}, "a", {"choice": "a", "logprob": -0.125}),
        ({"pattern": r"score: (?P<score>\d)", "arrow_type": {"score": "int64"}}, "score: 3", {"score": 3}),
        ({"pattern": r"\d+", "arrow_type": "int64"}, "about 12", 12),
        ({"schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}, '{"a": 1}', {"a": 1}),
        ({"type": "json", "schema": {"type": "array", "items": {"type": "string"}}}, '["a"]', ["a"]),
    ],
)
def test_an_answer_section_says_what_the_column_holds(answer: Any, text: str, value: Any) -> None:
    """The type may be left out where a key tells it."""
    with replying(text) as server:
        [row] = ask(server, [{"text": "?"}], answer=answer)
    assert row == {"x": value, "x_error": None, "x_skipped": None}


def test_a_schema_may_stand_in_a_file(tmp_path: Path) -> None:
    """And is sent along, unless told otherwise."""
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}')
    with SimulatedServer() as server:
        [row] = ask(server, [{"text": "?"}], answer={"schema_file": str(path)})
        assert isinstance(row["x"]["a"], int)
        assert server.requests[0].body["response_format"]["type"] == "json_schema"
    with replying("{}") as server:
        [row] = ask(server, [{"text": "?"}], answer={"schema_file": str(path), "guided": False}, max_reasks=0)
        assert "response_format" not in server.requests[0].body
        assert '"a" is a required property' in row["x_error"]


def test_models_and_functions_come_from_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from the working directory."""
    (tmp_path / "own_parsers.py").write_text(
        "from pydantic import BaseModel\n"
        "class Fact(BaseModel):\n    year: int\n"
        "def words(text: str) -> list[str]:\n    return text.split()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with replying('{"year": 1990}') as server:
        assert ask(server, [{"text": "?"}], answer={"python": "own_parsers:Fact"})[0]["x"] == {"year": 1990}
        answer = {"parser": "own_parsers:words", "arrow_type": "list<string>"}
        assert ask(server, [{"text": "?"}], answer=answer)[0]["x"] == ['{"year":', "1990}"]


def test_all_parts_of_a_prompt_can_be_given(tmp_path: Path) -> None:
    """Files, examples, a column of turns, images, rows to skip."""
    (tmp_path / "system.txt").write_text("Judge {{ kind }}s.")
    pixel = b"\x89PNG\r\n\x1a\n" + b"0" * 8
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    rows = [
        {"text": "one", "kind": "text", "turns": turns, "image": pixel},
        {"text": "two", "kind": "skip", "turns": turns, "image": pixel},
    ]
    settings = {
        "system_prompt_file": str(tmp_path / "system.txt"),
        "messages_column": "turns",
        "messages": [{"role": "user", "content": "Say zero"}, {"role": "assistant", "content": "zero"}],
        "images": "image",
        "skip_when": "kind == 'skip'",
    }
    with SimulatedServer() as server:
        out = ask(server, rows, **settings)
        [request] = server.requests
    assert out[1]["x_skipped"] == "skip_when is true"
    assert [turn["role"] for turn in request.body["messages"]] == ["system", *["user", "assistant"] * 2, "user"]
    assert request.body["messages"][0]["content"] == "Judge texts."
    assert [part["type"] for part in request.body["messages"][-1]["content"]] == ["image_url", "text"]


def test_a_job_may_have_no_prompt_but_turns() -> None:
    """Of a column."""
    with replying("ok") as server:
        settings = {"prompt": None, "messages_column": "turns"}
        [row] = ask(server, [{"turns": [{"role": "user", "content": "hello"}]}], **settings)
    assert row["x"] == "ok"


@pytest.mark.parametrize(("formatter", "prompt"), [("plain", "User: Say a\n\nAssistant:"), ("template", "<user>Say a")])
def test_a_base_model_gets_formatted_text(tmp_path: Path, formatter: str, prompt: str) -> None:
    """In a plain form, or by a chat template of Hugging Face's."""
    if formatter == "template":
        path = tmp_path / "tokenizer_config.json"
        path.write_text(
            json.dumps({"chat_template": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"})
        )
        formatter = str(path)
    with SimulatedServer() as server:
        ask(server, [{"text": "a"}], conversation_formatter=formatter)
        assert server.requests[0].body["prompt"] == prompt


def test_policies_reach_the_stage() -> None:
    """And the reasoning column."""
    settings = {"max_reasks": 5, "on_truncated": "retry_longer", "max_tokens_cap": 9, "on_overflow": "shrink_output"}
    stage = config_of(**settings, reasoning_column=True, deduplicate=False).make_stage()
    described = stage.describe()
    assert described["recovery"] == settings
    assert described["reasoning_column"] is True
    assert stage.column.deduplicate is False


def test_a_config_survives_being_written_down() -> None:
    """As a job's record holds it."""
    config = config_of(answer={"schema": {"type": "object"}}, generation_config={"stop": ["a"]}, images=["a", "b"])
    assert make_config(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"promt": "x"}, "unknown key 'promt'; did you mean 'prompt'?"),
        ({"client": {"base_ulr": "x"}}, "unknown key 'client.base_ulr'; did you mean 'base_url'?"),
        ({"answer": {"choices": ["a"], "giuded": True}}, "unknown key 'answer.giuded'; did you mean 'guided'?"),
        ({"answer": {"type": "chioces"}}, "answer.type is 'chioces'; did you mean 'choices'?"),
        ({"answer": {"choices": [True, False]}}, "answer.choices: YAML takes yes, no"),
        ({"answer": {"type": "json"}}, "answer: give one of schema, schema_file and python"),
        ({"generation_config": {"max_token": 3}}, "no parameter 'max_token'; did you mean 'max_tokens'?"),
        (
            {"generation_config": {"max_tokens": "many"}},
            "generation_config.max_tokens: Input should be a valid integer",
        ),
        ({"on_truncated": "retry_longr"}, "on_truncated is 'retry_longr'; did you mean 'retry_longer'?"),
        ({"prompt": None}, "there is nothing to ask"),
        ({"prompt_file": "x"}, "give one of prompt and prompt_file"),
        ({"output_column": ...}, "output_column is missing"),
        (
            {"client": {"base_url": "http://x/v1", "headers": {"Authorization": "Bearer x"}}},
            "Authorization may hold a key",
        ),
        ({"client": {"type": "htpp", "base_url": "x"}}, "client.type is 'htpp'; did you mean 'http'?"),
        ({"client": {}}, "client: base_url is missing: the server's address"),
        ({"client": {"base_url": "http://x/v1", "api_key": "x"}}, "a key does not belong into a job file"),
        ({"max_reasks": -1, "actors": 0}, "max_reasks: .*\n  actors: "),
    ],
)
def test_mistakes_are_told_by_key(settings: dict[str, Any], words: str) -> None:
    """With the nearest known one, one line for each."""
    merged = {name: value for name, value in (BASE | settings).items() if value is not ...}
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        make_config(merged)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"answer": {"schema_file": "nowhere.json"}}, "nowhere.json"),
        ({"answer": {"python": "json"}}, "must be module:name"),
        ({"answer": {"python": "json:Nothing"}}, "has no 'Nothing'"),
        ({"answer": {"parser": "no_such_module:f"}}, "cannot be imported"),
        ({"answer": {"parser": "json:loads", "arrow_type": "strng"}}, "no Arrow type 'strng'"),
        ({"answer": {"pattern": "("}}, "no regular expression"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "did you mean 'user'"),
        ({"conversation_formatter": "nowhere.jinja"}, "nowhere.jinja"),
        ({"skip_when": "a ==="}, "template"),
    ],
)
def test_what_cannot_be_built_is_refused(settings: dict[str, Any], words: str) -> None:
    """Before a server is started or asked."""
    with pytest.raises(ConfigError, match=words), config_of(client="local", **settings).open_stage():
        pass


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_environment_fills_settings_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a default, as part of a value or all of it; texts for the model stay as they are."""
    monkeypatch.setenv("NLS_HOST", "gpu7")
    monkeypatch.setenv("NLS_ACTORS", "3")
    monkeypatch.delenv("NLS_OUT", raising=False)
    path = write(
        tmp_path / "job.yaml",
        """
        output: ${NLS_OUT:-out}/x
        client: {base_url: ["http://${NLS_HOST}:8000/v1", "http://b$${NLS_HOST}/v1"]}
        actors: ${NLS_ACTORS}
        prompt: "${NLS_NOT_SET} costs ${{ price }}"
        """,
    )
    assert read_job_file(path) == {
        "output": "out/x",
        "client": {"base_url": ["http://gpu7:8000/v1", "http://b${NLS_HOST}/v1"]},
        "actors": 3,
        "prompt": "${NLS_NOT_SET} costs ${{ price }}",
    }


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "MY_SECRET", "DB_PASSWORD"])
def test_a_secret_is_never_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Job files are written down, pickled and shown."""
    monkeypatch.setenv(name, "hush-hush")
    path = write(tmp_path / "job.yaml", f"client: {{headers: {{x: 'Bearer ${{{name}}}'}}}}")
    with pytest.raises(ConfigError, match=r"client.headers.x: .* looks like a secret.*api_key_env") as caught:
        read_job_file(path)
    assert "hush" not in str(caught.value)


def test_a_missing_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its place."""
    monkeypatch.delenv("NLS_NOT_SET", raising=False)
    with pytest.raises(ConfigError, match="output: the environment variable NLS_NOT_SET is not set"):
        read_job_file(write(tmp_path / "job.yaml", "output: ${NLS_NOT_SET}/x"))


def test_assignments_go_over_the_settings() -> None:
    """In YAML, however deep; what was there stays as it was."""
    settings = {"client": "local", "generation_config": {"max_tokens": 4, "seed": 1}, "actors": 1}
    assignments = ["client.timeout=3", "generation_config.max_tokens=8", "answer.choices=[a, b]", "model=a=b"]
    assert override(settings, assignments) == {
        "client": {"type": "local", "timeout": 3},
        "generation_config": {"max_tokens": 8, "seed": 1},
        "answer": {"choices": ["a", "b"]},
        "actors": 1,
        "model": "a=b",
    }
    assert settings["generation_config"] == {"max_tokens": 4, "seed": 1}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("max_tokens", "must be key=value"),
        (".a=1", "must be key=value"),
        ("model.x=1", "model is 'm'"),
        ("a=[", "YAML"),
    ],
)
def test_a_broken_assignment_is_refused(assignment: str, words: str) -> None:
    """Naming it."""
    with pytest.raises(ConfigError, match=words):
        override({"model": "m"}, [assignment])


def test_the_json_schema_agrees_with_the_check() -> None:
    """Of what a job file may hold, with a description for every setting."""
    schema = json_schema()
    validator = jsonschema_rs.validator_for(schema)
    for settings in ({}, {"client": "local"}, {"answer": "text"}, {"answer": {"choices": ["a"]}, "images": ["a"]}):
        config_of(**settings)
        validator.validate({**BASE, **settings})
    for wrong in ({"promt": 1}, {"answer": {"choices": ["a"], "x": 1}}, {"generation_config": {"max_token": 1}}):
        assert not validator.is_valid({**BASE, **wrong})
    assert all(property_["description"] for property_ in schema["properties"].values())


def test_a_rendering_stage_needs_no_server() -> None:
    """Whatever client the job names."""
    stage = config_of(client="local", model=None).make_stage()
    assert isinstance(stage.client, AsyncHTTPClient)
    assert stage.column.prompt.render({"text": "a"}) == [{"role": "user", "content": "Say a"}]


CHAIN: dict[str, Any] = {
    "prompt": None,
    "output_column": None,
    "generation_config": {"max_tokens": 64, "seed": 3},
    "columns": [
        {"output_column": "summary", "prompt": "Sum up {{ text }}", "answer": "text"},
        {
            "output_column": "quality",
            "prompt": "Rate {{ summary }}",
            "model": "judge",
            "generation_config": {"max_tokens": 4, "temperature": "{{ t }}"},
            "answer": {"pattern": r"\d", "arrow_type": "int64"},
        },
    ],
    "keep_if": "quality >= 3",
}


def test_a_job_may_have_several_columns() -> None:
    """What a column does not say is as the job has it; they share the job's client."""
    with SimulatedServer(
        answer=lambda body: "5" if body["model"] == "judge" else "short", model=("sim", "judge")
    ) as server:
        rows = ask(server, [{"text": "a", "t": 0.5}], **CHAIN)
        asked = [request.body for request in server.requests]
    assert [(row["summary"], row["quality"]) for row in rows] == [("short", 5)]
    names = ("model", "max_tokens", "seed", "temperature")
    assert [tuple(body[name] for name in names) for body in asked] == [("sim", 64, 3, 0.0), ("judge", 4, 3, 0.5)]


def test_a_config_of_columns_survives_being_written_down() -> None:
    """As the record of a job, which `retry-failed` reads."""
    config = config_of(**CHAIN)
    again = make_config(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again == config
    assert again.make_stage().describe() == config.make_stage().describe()
    assert again.max_concurrent_requests == 64


def test_a_columns_client_stands_for_itself() -> None:
    """The job's key is not sent to another server."""
    own = {"client": {"base_url": "http://other/v1"}, "output_column": "b", "prompt": "b", "model": "m"}
    job = {"client": {"base_url": "http://one/v1", "api_key_env": "ONE_KEY"}}
    config = config_of(**{**CHAIN, **job, "columns": [own], "keep_if": None})
    assert config.columns[0].client.api_key_env is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": "x"}, "prompt cannot be used with `columns`: put it into one of them"),
        ({"output_column": "x"}, "output_column cannot be used with `columns`"),
        ({"columns": [{"prompt": "x"}]}, "columns.0: output_column is missing"),
        ({"columns": [{"output_column": "x"}]}, "columns.0: there is nothing to ask"),
        ({"columns": [{"output_column": "x", "promt": "y"}]}, "unknown key 'columns.0.promt'; did you mean 'prompt'?"),
        (
            {"columns": [{"output_column": "x", "prompt": "y", "client": {"base_ur": "z"}}]},
            "unknown key 'columns.0.client.base_ur'; did you mean 'base_url'?",
        ),
        (
            {"columns": [{"output_column": "x", "prompt": "y", "answer": {"type": "choices", "choices": 3}}]},
            "columns.0.answer.choices: ",
        ),
        ({"columns": [{"output_column": "x", "prompt": "y", "client": {"api_key": "k"}}]}, "a key does not belong"),
        ({"columns": {"a": 1}}, "columns: "),
    ],
)
def test_a_mistake_in_a_column_is_told_by_its_place(settings: dict[str, Any], words: str) -> None:
    """From 0."""
    with pytest.raises(ConfigError) as failure:
        config_of(**CHAIN | {"keep_if": None} | settings)
    assert words in str(failure.value)


def test_a_mistake_of_the_job_is_told_once() -> None:
    """Not for each column that takes it over."""
    with pytest.raises(ConfigError) as failure:
        config_of(**CHAIN | {"max_reasks": -1})
    assert len(str(failure.value).splitlines()) == 2


def test_settings_of_a_column_can_be_set_and_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its place; texts for the model are left as they are."""
    monkeypatch.setenv("JUDGE", "big")
    path = tmp_path / "job.yaml"
    path.write_text("columns:\n- {output_column: a, model: '${JUDGE}', prompt: '${JUDGE}'}\n")
    settings = read_job_file(path)
    assert settings["columns"] == [{"output_column": "a", "model": "big", "prompt": "${JUDGE}"}]
    changed = override(settings, ["columns.0.model=small", "columns.0.generation_config.max_tokens=3"])
    assert changed["columns"][0]["model"] == "small"
    assert changed["columns"][0]["generation_config"] == {"max_tokens": 3}
    assert settings["columns"][0]["model"] == "big"


def test_the_schema_knows_columns() -> None:
    """A job file of columns is valid, one with a typo is not."""
    schema = json_schema()
    job = {key: value for key, value in {**BASE, **CHAIN}.items() if value is not None}
    jsonschema_rs.validate(schema, job)
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(schema, job | {"columns": [{"output_column": "x", "promt": "y"}]})


def test_a_misspelt_setting_of_a_section_is_named_with_its_place() -> None:
    """At the top level, where people write it."""
    settings = {"input": "a", "output": "b", "client": "local", "prompt": "{{ x }}", "output_column": "c"}
    with pytest.raises(ConfigError, match=r"did you mean 'generation_config\.max_tokens'\?"):
        make_config({**settings, "max_tokns": 4})
    with pytest.raises(ConfigError, match=r"did you mean 'output_format'\?"):
        make_config({**settings, "output_formt": "jsonl"})
