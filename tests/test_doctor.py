"""`doctor` tells what is wrong with a machine or a server, and what to do about it."""

from __future__ import annotations

import contextlib
import http.server
import resource
import socketserver
import ssl
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from nemo_llm_stage.cli import main
from nemo_llm_stage.cli.findings import EXTRAS
from nemo_llm_stage.testing import Fault, SimulatedServer


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer() as server:
        yield server


def doctor(*words: str) -> tuple[int, dict[str, str]]:
    """The exit code, and what each line says by its name, ``ok`` or ``problem`` first."""
    result = CliRunner().invoke(main, ["doctor", *words])
    assert not result.stderr, result.stderr
    lines = {line[9:21].strip(): f"{line[:9].strip()} {line[21:]}" for line in result.stdout.splitlines()}
    return result.exit_code, lines


def look_at(url: str, *words: str, model: str = "sim") -> tuple[int, dict[str, str]]:
    return doctor("--base-url", url, "--model", model, "--engine", "local", *words)


def test_a_good_server_is_ok_in_every_line(server: SimulatedServer) -> None:
    """Down to the speed of one answer."""
    code, lines = look_at(server.base_url)
    assert code == 0
    assert all(text.startswith("ok ") for text in lines.values())
    assert {"versions", "extras", "open files", "server", "key", "model", "speed"} == lines.keys()


def test_a_job_file_is_looked_at_with_its_own_settings(server: SimulatedServer, tmp_path: Path) -> None:
    """Its server, model and limit."""
    job = tmp_path / "job.yaml"
    job.write_text(
        f"input: none.parquet\noutput: out\nclient: {{base_url: '{server.base_url}', max_concurrent_requests: 7}}\n"
        "model: sim\nprompt: '{{ text }}'\noutput_column: x\nengine: local\n"
    )
    code, lines = doctor(str(job))
    assert code == 0
    assert "7 requests in flight" in lines["open files"]


def test_an_unknown_model_is_told_from_the_server_and_the_key(server: SimulatedServer) -> None:
    """With the nearest one, and exit code 1."""
    code, lines = look_at(server.base_url, model="simm")
    assert code == 1
    assert lines["server"].startswith("ok")
    assert "problem" in lines["model"]
    assert "'sim'" in lines["model"]


def test_no_key_is_told_from_a_wrong_one(server: SimulatedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the setting is named."""
    monkeypatch.setenv("MY_KEY", "wrong")
    server.faults = [Fault(401)]
    _, without = look_at(server.base_url)
    _, wrong = look_at(server.base_url, "--api-key-env", "MY_KEY")
    assert "No API key was sent" in without["key"]
    assert "api_key_env" in without["key"]
    assert "It was sent" in wrong["key"]


def test_https_for_a_server_that_speaks_http(server: SimulatedServer) -> None:
    """The URL to write is in the message."""
    code, lines = look_at(server.base_url.replace("http:", "https:"), "--connect-timeout", "0.5")
    assert code == 1
    assert f"speaks http: write base_url: {server.base_url}" in lines["server"]


def test_https_for_a_server_that_waits_for_the_rest_of_a_request(waiting_server: str) -> None:
    """As Python's own and others do: the scheme is found without waiting for the connection to time out."""
    code, lines = look_at(waiting_server.replace("http:", "https:"), "--connect-timeout", "20")
    assert code == 1
    assert f"does not answer. The server speaks http: write base_url: {waiting_server}" in lines["server"]
    assert lines["server"].count("speaks") == 1


def test_a_tls_servers_answer_to_plain_http_is_no_plain_server(tls_like_server: str) -> None:
    """A server behind nginx answers 400 to plain http on its https port; the message is about the connection."""
    code, lines = look_at(tls_like_server.replace("http:", "https:"))
    assert code == 1
    assert "speaks http" not in lines["server"]


def test_http_for_a_server_that_speaks_https(https_server: str) -> None:
    """The URL to write is in the message."""
    code, lines = look_at(https_server.replace("https:", "http:"))
    assert code == 1
    assert f"speaks https: write base_url: {https_server}" in lines["server"]


def test_more_requests_than_files_may_be_open() -> None:
    """The limit, and how to raise it or live with it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("no hard limit here")
    _, lines = look_at("http://127.0.0.1:9/v1", "--max-concurrent-requests", str(hard + 1))
    assert "problem" in lines["open files"]
    assert "max_concurrent_requests" in lines["open files"]


def test_the_extras_are_those_of_the_package() -> None:
    """All but the developers'."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"]) - {"dev"}


@contextlib.contextmanager
def raw_server(answer: bytes, *, hangs_up: bool) -> Iterator[str]:
    """The URL of a server that answers requests in plain HTTP; at all else it waits, or hangs up after its answer."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            data = self.connection.recv(65536)
            if data.startswith(b"GET ") or hangs_up:
                self.wfile.write(answer)
            else:
                self.rfile.read()  # until the client gives up

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()


@pytest.fixture
def waiting_server() -> Iterator[str]:
    with raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", hangs_up=False) as url:
        yield url


@pytest.fixture
def tls_like_server() -> Iterator[str]:
    with raw_server(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", hangs_up=True) as url:
        yield url


@pytest.fixture
def https_server(tmp_path: Path) -> Iterator[str]:
    """The base URL of a server that speaks TLS only, with a certificate of its own."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=test", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the openssl command")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with http.server.HTTPServer(("127.0.0.1", 0), _Silent) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Write nothing."""
