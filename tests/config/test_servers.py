"""The `servers` section: who asks them, and what cannot work."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_llm_stage import ConfigError
from nemo_llm_stage.config.load import make_config
from nemo_llm_stage.config.servers import make_servers

BASE: dict[str, Any] = {"input": "in", "output": "out", "prompt": "a", "output_column": "x", "model": "m"}
SERVERS: dict[str, Any] = {"command": "vllm serve {model} --port {port}", "count": 3}


def test_a_client_without_an_address_asks_them() -> None:
    """Also where there is no section for it; the command is split as a shell would."""
    config = make_config({**BASE, "servers": SERVERS})
    assert config.clients_and_models[0][0].base_url == "servers"  # type: ignore[union-attr]
    assert config.servers is not None
    assert config.servers.plan("m").words == ("vllm", "serve", "{model}", "--port", "{port}")
    assert config.total_limit() == 3 * 64


def test_a_column_may_ask_another_server() -> None:
    """As long as one asks those that are started."""
    columns = [
        {"output_column": "x", "prompt": "a"},
        {"output_column": "y", "prompt": "b", "client": {"base_url": "http://judge:8000/v1"}, "model": "judge"},
    ]
    config = make_config({"input": "in", "output": "out", "model": "m", "columns": columns, "servers": SERVERS})
    assert [client.base_url for client, _ in config.clients_and_models] == [  # type: ignore[union-attr]
        *("servers", "http://judge:8000/v1"),
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"servers": {"command": "vllm serve"}}, "does not say where to listen"),
        ({"servers": {"command": "vllm serve --port {prot}"}}, "did you mean 'port'"),
        ({"servers": {**SERVERS, "cuont": 4}}, "unknown key 'servers.cuont'; did you mean 'count'"),
        ({"servers": {**SERVERS, "command": "vllm --api-key abc --port {port}"}}, "--api-key: a key does not belong"),
        ({"servers": {**SERVERS, "env": {"HF_TOKEN": "x"}}}, "HF_TOKEN may be a secret"),
        ({"servers": {**SERVERS, "command": "A=b vllm --port {port}"}}, "A: a command has no variables"),
        ({"servers": {**SERVERS, "command": "env HF_TOKEN=abc vllm --port {port}"}}, "HF_TOKEN: a key does not belong"),
        ({"servers": {**SERVERS, "command": ["a\0b", "{port}"]}}, "null character"),
        ({"servers": {**SERVERS, "port": 65534}}, "not 3 ports"),
        ({"servers": {**SERVERS, "health_path": "ready now"}}, "'ready now' is no path"),
        ({"servers": {**SERVERS, "env": {"A=B": 1}}}, "'A=B' cannot be a variable"),
        ({"client": {"base_url": "servers"}}, "say in `servers` what they are"),
        ({"servers": SERVERS, "client": {"base_url": "http://a/v1"}}, "no client asks them"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], words: str) -> None:
    """Before anything starts."""
    with pytest.raises(ConfigError, match=words):
        make_config({**BASE, **settings})


def test_a_command_may_be_continued_as_in_a_shell() -> None:
    """A backslash at the end of a line is no word; a variable without a value is empty."""
    servers = {**SERVERS, "command": "vllm serve {model} \\\n  --port {port} \\\n", "env": {"A": None, "B": True}}
    config = make_config({**BASE, "servers": servers})
    assert config.servers is not None
    assert config.servers.command == ("vllm", "serve", "{model}", "--port", "{port}")
    assert config.servers.env == {"A": "", "B": "True"}


def test_a_command_that_wants_a_model_gets_one() -> None:
    """Or is not started with an empty word in its place."""
    servers = make_servers(SERVERS, "servers.yaml")
    with pytest.raises(ConfigError, match="no model is set"):
        servers.plan()
    assert servers.plan("m").model == "m"
