"""The embedded model: it answers, and its end or its parent's end leaves nobody waiting."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from nemo_llm_stage.embedded.local_server import LocalServer
from nemo_llm_stage.errors import ConfigError, RunError

TIMEOUT_S = 120.0


def ask(server_url: str, **fields: Any) -> http.client.HTTPResponse:
    """Send a chat request and return the answer as far as its headers."""
    url = urlsplit(server_url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=TIMEOUT_S)
    messages = [{"role": "user", "content": fields.pop("text")}]
    connection.request("POST", f"{url.path}/chat/completions", json.dumps({"messages": messages, **fields}))
    return connection.getresponse()


def long_answer(server_url: str) -> http.client.HTTPResponse:
    """Ask for an answer of a minute or more, and return it when its first words are here."""
    response = ask(server_url, text="Tell a long story.", max_tokens=1900, stream=True, ignore_eos=True)
    assert response.readline().startswith(b"data:")
    return response


def is_cut_off(response: http.client.HTTPResponse) -> bool:
    """Read on until the connection ends."""
    try:
        return b"[DONE]" not in response.read()
    except (http.client.IncompleteRead, ConnectionError):
        return True


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """One server for the tests that only ask."""
    with LocalServer() as server:
        yield server


@pytest.mark.local_model
def test_it_answers_a_question(server: LocalServer) -> None:
    """It is a real model."""
    answer = json.load(ask(server.base_url, text="What colour is the sky?", max_tokens=16, temperature=0))
    assert "blue" in answer["choices"][0]["message"]["content"]
    assert server.model == answer["model"]


@pytest.mark.local_model
def test_answers_follow_a_json_schema(server: LocalServer) -> None:
    """Structured columns work on the embedded model too."""
    schema = {
        "type": "object",
        "properties": {"difficulty": {"type": "integer", "enum": [1, 2, 3]}, "is_function": {"type": "boolean"}},
        "required": ["difficulty", "is_function"],
        "additionalProperties": False,
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "label", "schema": schema, "strict": True}}
    answer = json.load(ask(server.base_url, text="Rate sorted().", max_tokens=64, response_format=response_format))
    value = json.loads(answer["choices"][0]["message"]["content"])
    assert {"difficulty", "is_function"} == set(value)
    assert value["difficulty"] in (1, 2, 3)


@pytest.mark.local_model
def test_a_prompt_that_is_too_long_is_refused(server: LocalServer) -> None:
    """The context is what was asked for, and going over it is a client error."""
    response = ask(server.base_url, text="word " * 3000, max_tokens=1)
    assert response.status == 400
    response.read()


@pytest.mark.local_model
def test_metrics_are_served(server: LocalServer) -> None:
    """The demo server can be watched like a real one."""
    url = urlsplit(server.base_url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=TIMEOUT_S)
    connection.request("GET", "/metrics")
    assert b"requests_processing" in connection.getresponse().read()
    connection.close()


@pytest.mark.local_model
@pytest.mark.parametrize("end", [LocalServer.close, lambda server: os.kill(server.pid, signal.SIGKILL)])
def test_its_end_leaves_no_client_hanging(end: Callable[[LocalServer], None]) -> None:
    """Stopped or killed, a request under way fails at once."""
    with LocalServer() as server:
        response = long_answer(server.base_url)
        end(server)
        assert is_cut_off(response)


def is_refused_in_the_end(host: str | None, port: int | None) -> bool:
    """Whether nobody listens there any more; the sockets of a killed process close one after another."""
    give_up_at_monotonic_s = time.monotonic() + 30
    while time.monotonic() < give_up_at_monotonic_s:
        try:
            socket.create_connection((host, port)).close()
        except ConnectionRefusedError:
            return True
    return False


@pytest.mark.local_model
def test_it_ends_with_its_parent() -> None:
    """A killed job leaves no model server behind."""
    code = (
        "from nemo_llm_stage.embedded.local_server import LocalServer\n"
        "with LocalServer() as server: print(server.base_url, flush=True); input()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        base_url = parent.stdout.readline().strip()
        response = long_answer(base_url)
        parent.kill()
        assert is_cut_off(response)
    url = urlsplit(base_url)
    assert is_refused_in_the_end(url.hostname, url.port)


@pytest.mark.local_model
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_serving_by_hand_ends_cleanly(signum: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end it without a traceback; what it printed can be used."""
    # A shell starts what runs in its background deaf to SIGINT, and the tests may run there.
    code = """
        import signal
        from nemo_llm_stage.embedded.local_server import serve_forever
        signal.signal(signal.SIGINT, signal.default_int_handler)
        serve_forever()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        welcome = "".join(process.stdout.readline() for _ in range(3))
        os.kill(process.pid, signum)
        try:
            _, errors = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert "SmolLM2-135M-Instruct is served at http://127.0.0.1:" in welcome
    assert "curl http://127.0.0.1:" in welcome
    assert (errors, process.returncode) == ("", 0)


@pytest.mark.local_model
def test_a_taken_port_is_told() -> None:
    """By the error, also where llama.cpp's own words come too late."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"port: {port}"):
            LocalServer(port=port).start()


@pytest.mark.local_model
def test_a_broken_model_file_is_told(tmp_path: Path) -> None:
    """A download that was cut short shows as what it is."""
    gguf = tmp_path / "cut.gguf"
    gguf.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(RunError, match=f"model: {gguf}"):
        LocalServer(gguf).start()


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b"PK\x03\x04", "not a GGUF model file")])
def test_a_file_that_is_no_model_is_refused_before_anything_starts(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    """A wrong --gguf costs no time."""
    gguf = tmp_path / "model.gguf"
    if content:
        gguf.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        LocalServer(gguf).start()
