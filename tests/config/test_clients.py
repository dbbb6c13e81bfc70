"""Each type of client has settings of its own, and none of them holds a secret."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from nemo_llm_stage import ConfigError
from nemo_llm_stage.cli.options import merged_settings
from nemo_llm_stage.config.load import JobConfig, make_config
from nemo_llm_stage.config.schema import json_schema

JOB: dict[str, Any] = {"input": "in", "output": "out", "model": "m", "prompt": "{{ text }}", "output_column": "x"}
URL = "http://127.0.0.1:1/v1"
SECRET = "sk-canary-5b1f0f6e8d2c4a97"


def config_of(client: Any, **settings: Any) -> JobConfig:
    return make_config({**JOB, "client": client, **settings})


@pytest.mark.parametrize(
    ("client", "words"),
    [
        ({"base_url": URL, "gguf": "m.gguf"}, "client: gguf is for `type: local`, not for `type: http`"),
        (
            {"type": "local", "base_url": URL, "api_key_env": "KEY"},
            "client: base_url and api_key_env are for `type: http` or `type: openai`, not for `type: local`",
        ),
        ({"type": "local", "check_server": False}, "client: check_server is for `type: http` or `type: openai`"),
        ({"type": "openai", "base_url": [URL, URL]}, "takes one base_url; use `type: http` for several"),
        ({"type": "local", "base_ulr": URL}, "unknown key 'client.base_ulr'"),
        ({"type": "local", "ggfu": "m"}, "unknown key 'client.ggfu'; did you mean 'gguf'?"),
        ({"type": "openai"}, "client: base_url is missing"),
        ({"base_url": URL, "timeout": 0}, "client.timeout: Input should be greater than 0"),
        ({"base_url": URL, "query": {"key": {"evn": "X"}}}, "client.query: a value must be a text, {env: NAME}"),
    ],
)
def test_a_client_refuses_what_it_does_not_have(client: dict[str, Any], words: str) -> None:
    """By name, with the type that has it."""
    with pytest.raises(ConfigError) as caught:
        config_of(client)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("client", "words"),
    [
        ({"headers": {"X-Team": SECRET}}, "client.headers: X-Team may hold a key, which does not belong in a job file"),
        ({"query": {"key": SECRET}}, "client.query: key may hold a key"),
        ({"proxy": f"http://me:{SECRET}@proxy:3128"}, "client.proxy: a password does not belong in a job file"),
    ],
)
def test_a_literal_secret_is_refused(client: dict[str, Any], words: str) -> None:
    """With the way to name it; it is not repeated."""
    with pytest.raises(ConfigError) as caught:
        config_of({"base_url": URL, **client})
    assert words in str(caught.value)
    assert "{env: NAME} or {file: PATH}" in str(caught.value)
    assert SECRET not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize("place", ["extra_headers", "extra_query"])
def test_a_requests_own_secret_is_refused(place: str) -> None:
    """It belongs to the client."""
    with pytest.raises(ConfigError, match=f"{place}: X-Key may hold a key.*put it into the client's") as caught:
        config_of({"base_url": URL}, generation_config={"extra_kwargs": {place: {"X-Key": SECRET}}})
    assert SECRET not in f"{caught.value} {caught.value.__cause__}"
    config_of({"base_url": URL}, generation_config={"extra_kwargs": {"extra_headers": {"X-Title": "my job"}}})


NAMED = {
    "base_url": URL,
    "api_key_env": "MY_KEY",
    "api_key_header": "api-key",
    "headers": {"X-Team": {"env": "MY_TEAM"}, "X-Title": "my job"},
    "query": {"api-version": "2024-10-21", "key": {"file": "/run/secrets/key"}},
    "proxy": {"env": "MY_PROXY"},
}


@pytest.mark.parametrize("client_type", ["http", "openai"])
def test_named_values_are_written_down_by_name(client_type: str) -> None:
    """And read back as they were."""
    config = config_of({"type": client_type, **NAMED})
    dumped = json.loads(json.dumps(config.model_dump(mode="json")))
    assert dumped["client"]["headers"] == NAMED["headers"]
    assert dumped["client"]["query"] == NAMED["query"]
    assert make_config(dumped) == config
    jsonschema_rs.validate(json_schema(), {**JOB, "client": {"type": client_type, **NAMED}})


def test_a_date_of_yaml_is_a_version() -> None:
    """YAML takes 2024-10-21 for a date, and numbers and truth values for such."""
    import yaml

    client = yaml.safe_load(f"{{base_url: '{URL}', query: {{api-version: 2024-10-21, version: 3, beta: true}}}}")
    assert config_of(client).client.model_dump()["query"] == {
        "api-version": "2024-10-21",
        "version": "3",
        "beta": "true",
    }


OLD = {
    "base_url": None,
    "api_key_env": None,
    "api_key_file": None,
    "headers": {},
    "max_concurrent_requests": None,
    "max_retries": 3,
    "base_delay": 1.0,
    "timeout": 600.0,
    "connect_timeout": 10.0,
    "ca_file": None,
    "proxy": None,
    "gguf": None,
}


@pytest.mark.parametrize("client_type", ["http", "openai", "local"])
def test_a_record_of_an_older_version_is_read(client_type: str) -> None:
    """It holds the settings of all types, unset, and literal headers."""
    own = {} if client_type == "local" else {"base_url": URL, "headers": {"X-Team": "curation"}}
    config = make_config({**JOB, "client": {"type": client_type, **OLD, **own}}, is_record=True)
    assert config.client.type == client_type
    assert config.client.max_concurrent_requests == {"http": "auto", "openai": 64, "local": 4}[client_type]


def test_another_type_on_the_command_line_leaves_the_rest_behind() -> None:
    """A job for a server is tried on the embedded model, and one on that with a server."""
    job = {**JOB, "client": {"base_url": URL, "api_key_env": "MY_KEY", "max_retries": 7}}
    local = merged_settings(job, {"client": "local"})
    assert local["client"] == {"type": "local", "max_retries": 7}
    make_config(local)
    back = merged_settings({**JOB, "client": {"type": "local", "gguf": "x"}}, {"client": "http", "base_url": (URL,)})
    assert back["client"] == {"type": "http", "base_url": URL}
    make_config(back)


def test_the_schema_has_the_settings_of_each_type() -> None:
    """With their descriptions."""
    schema = json_schema()
    validator = jsonschema_rs.validator_for(schema)
    good = ({"base_url": URL}, {"type": "openai", "base_url": URL}, {"type": "local", "gguf": "x"}, "local")
    for client in good:
        config_of(client)
        validator.validate({**JOB, "client": client})
    for wrong in ({"type": "local", "base_url": URL}, {"type": "openai", "base_url": URL, "gguf": "x"}, {"gguf": "x"}):
        assert not validator.is_valid({**JOB, "client": wrong})
    for name in ("HTTPClientConfig", "OpenAIClientConfig", "LocalClientConfig"):
        assert all(part["description"] for part in schema["$defs"][name]["properties"].values())
