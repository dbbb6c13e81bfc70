"""`nemo-llm-stage init`: a job file that is right for the user's own file, column and server, asked for or given."""

from __future__ import annotations

import json
import os
import pty
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

from nemo_llm_stage.cli import main
from nemo_llm_stage.cli.nearby import find_servers, look_at, server_of_environment
from nemo_llm_stage.config.load import make_config
from nemo_llm_stage.testing import SimulatedServer

ROWS = [{"id": f"a{i}", "headline": "short", "body": "A much longer text. " * (i + 1)} for i in range(6)]


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(model=("my-embedder", "my-model")) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a file, a folder of files, a job's output, and things that are no data."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.Table.from_pylist(ROWS), "docs.parquet")
    Path("more").mkdir()
    Path("more/a.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    Path("old_output/.nemo_llm_stage").mkdir(parents=True)
    Path("old_output/part.parquet").touch()
    Path("package.json").write_text("{}")
    return tmp_path


def init(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, ["init", *arguments])


def job(path: str = "job.yaml") -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(Path(path).read_text())
    make_config(settings)
    return settings


def test_options_answer_everything(folder: Path, server: SimulatedServer) -> None:
    """The longest text is the column; a model that embeds is not the first choice."""
    result = init("--input", "docs.parquet", "--base-url", server.base_url)
    assert result.exit_code == 0, result.output
    assert job()["client"] == {"type": "http", "base_url": server.base_url, "max_concurrent_requests": "auto"}
    assert (job()["model"], job()["input"], job()["output_column"]) == ("my-model", "docs.parquet", "summary")
    assert "{{ body }}" in job()["prompt"]
    assert "nemo-llm-stage preview job.yaml" in result.stdout


def test_the_job_runs_as_it_is_written(folder: Path, server: SimulatedServer) -> None:
    """On the user's file and server."""
    init("--input", "docs.parquet", "--base-url", server.base_url, "--column", "headline")
    result = CliRunner().invoke(main, ["run", "job.yaml", "--no-progress"])
    assert result.exit_code == 0, result.output
    assert pq.read_table("job_output").column("summary").null_count == 0


def test_a_prompt_of_ones_own(folder: Path, server: SimulatedServer) -> None:
    """With its column, and a name of an output column that is free."""
    own = ("--prompt", "Translate: {{ headline }}", "--output-column", "french")
    init("--input", "docs.parquet", "--base-url", server.base_url, *own)
    assert (job()["prompt"], job()["output_column"]) == ("Translate: {{ headline }}\n", "french")
    pq.write_table(pa.table({"body": ["x"], "summary": ["taken"]}), "docs.parquet")
    init("b.yaml", "--input", "docs.parquet", "--base-url", server.base_url)
    assert job("b.yaml")["output_column"] == "summary_2"


@pytest.mark.parametrize("column", ["two words", "it's", 'say "so"', "für"])
def test_any_column_can_be_used(folder: Path, server: SimulatedServer, column: str) -> None:
    """Also one whose name is no name in a template."""
    pq.write_table(pa.table({column: ["some text"]}), "docs.parquet")
    init("--input", "docs.parquet", "--base-url", server.base_url)
    result = CliRunner().invoke(main, ["preview", "job.yaml"])
    assert result.exit_code == 0, result.output
    assert "some text" in result.stdout


def test_a_key_is_named_and_never_written(folder: Path) -> None:
    """Told apart: none is given, the variable is not set, it is refused."""
    with SimulatedServer(model="my-model", api_key="sesame-1234") as server:
        where = ("--input", "docs.parquet", "--base-url", server.base_url)
        assert "give --api-key-env NAME" in init(*where).stderr
        assert "MY_KEY is not set" in init(*where, "--api-key-env", "MY_KEY").stderr
        assert "refuses the key" in init(*where, "--api-key-env", "MY_KEY", MY_KEY="wrong").stderr
        assert init(*where, "--api-key-env", "MY_KEY", MY_KEY="sesame-1234").exit_code == 0
    assert job()["client"]["api_key_env"] == "MY_KEY"
    assert "sesame" not in Path("job.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "docs.parquet", "--base-url", "http://127.0.0.1:9/v1"], "no server answers at"),
        (["--input", "docs.parquet", "--base-url", "localhost:8000"], "is no address of a server"),
        (["--input", "docs.parquet", "--client", "local", "--column", "bodi"], "did you mean 'body'?"),
        (["--base-url", "http://h:abc/v1"], "base_url is no URL"),
        (["--base-url", "http://a b/v1"], "names the host 'a b'"),
        (["--input", "docs.parquet", "--client", "local", "--prompt", "{{ bodi }}"], "did you mean 'body'?"),
        (["--input", "docs.parquet", "--client", "local", "--prompt", "{{ body"], "unexpected end of template"),
        (["--input", "docs.parquet", "--client", "local", "--output-column", "body"], "already has a column 'body'"),
        (["--api-key-env", "sk-canary-1", "--client", "local"], "must name an environment variable"),
        (["--input", "nothing.parquet", "--client", "local"], "nothing.parquet"),
        (["--input", "package.json", "--client", "local"], "package.json"),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_a_mistake_is_told_and_nothing_is_written(folder: Path, arguments: list[str], words: str) -> None:
    """Exit code 2."""
    result = init(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "sk-canary" not in result.output
    assert not Path("job.yaml").exists()


def test_what_speaks_no_http_is_told(folder: Path) -> None:
    """For instance an SSH server at a usual port, or one that ends in the middle."""
    for answer in (b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", b""):
        with socketserver.TCPServer(("127.0.0.1", 0), _answering(answer)) as other:
            threading.Thread(target=other.serve_forever, daemon=True).start()
            result = init("--base-url", f"http://127.0.0.1:{other.server_address[1]}/v1")
            assert find_servers([other.server_address[1]]) == []
            other.shutdown()
        assert result.exit_code == 2, result.output
        assert "no list of models at" in result.stderr or "no server answers at" in result.stderr


def _answering(answer: bytes) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(answer)

    return Handler


def test_a_key_that_no_header_can_hold_is_not_shown(folder: Path, server: SimulatedServer) -> None:
    """White space at its end, e.g. of a file from Windows, is dropped."""
    where = ("--base-url", server.base_url, "--api-key-env", "MY_KEY")
    result = init(*where, MY_KEY="sk-canary\n1")
    assert result.exit_code == 2
    assert "MY_KEY (--api-key-env) holds a character" in result.stderr
    assert "sk-canary" not in result.output
    assert init(*where, MY_KEY="sk-canary\r").exit_code == 0


def test_an_address_may_be_that_of_a_route(server: SimulatedServer) -> None:
    """As copied from a curl command."""
    assert look_at(f"{server.base_url}/chat/completions").base_url == server.base_url


def test_a_server_that_is_down_can_be_named_with_its_model(folder: Path) -> None:
    """The note says that it does not answer."""
    result = init("--input", "docs.parquet", "--base-url", "http://127.0.0.1:9/v1", "--model", "big")
    assert result.exit_code == 0, result.output
    assert "note: no server answers" in result.stderr
    assert job()["model"] == "big"


def test_an_address_without_v1_is_completed(server: SimulatedServer) -> None:
    """As the server answers."""
    assert look_at(server.base_url.removesuffix("/v1")).base_url == server.base_url


def test_servers_are_found(server: SimulatedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a port, where Ollama's variable says, and where the SDK's says; a port without one is ignored."""
    port = int(server.base_url.rpartition(":")[2].removesuffix("/v1"))
    assert [found.kind.name for found in find_servers([port, 9])] == ["vLLM"]
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{port}")
    assert [found.base_url for found in find_servers([9])] == [f"http://localhost:{port}/v1"]
    assert server_of_environment() is None
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    named = server_of_environment()
    assert named is not None
    assert (named.api_key_env, named.models) == ("OPENAI_API_KEY", ("my-model", "my-embedder"))


def at_a_terminal(typed: str, *arguments: str, **environment: str) -> str:
    """Return what `init` shows at a terminal where this is typed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "nemo_llm_stage", "init", *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **environment}) as it:
        os.close(theirs)
        os.write(ours, typed.encode())
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the terminal's other end is closed
                break
    os.close(ours)
    assert it.returncode == 0, shown.decode()
    return shown.decode()


def test_it_asks_for_file_column_and_server(folder: Path, server: SimulatedServer) -> None:
    """And offers what there is; the first offer is taken by Enter."""
    port = server.base_url.rpartition(":")[2].removesuffix("/v1")
    shown = at_a_terminal("\n3\n\n1\n", OLLAMA_HOST=port)
    offers = [line.split("  ")[2] for line in shown.splitlines() if line.startswith("  1  ")]
    assert offers[0] == "docs.parquet"
    for words in ("more/*.jsonl", "eight sample texts", f"vLLM at http://localhost:{port}/v1, my-model and 1 more"):
        assert words in shown
    assert "old_output" not in shown
    assert "headline  short" in shown
    settings = job()
    assert settings["client"]["base_url"] == f"http://localhost:{port}/v1"
    assert "{{" in settings["prompt"]
    assert "body" not in settings["prompt"]


def test_it_asks_only_what_no_option_says(folder: Path, server: SimulatedServer) -> None:
    """Another address may be typed where a server is offered."""
    shown = at_a_terminal(f"{server.base_url}\nmy-embedder\n", "--input", "docs.parquet", "--column", "body")
    assert "Which column" not in shown
    assert (job()["client"]["base_url"], job()["model"]) == (server.base_url, "my-embedder")


def test_it_asks_again_where_an_answer_cannot_be(folder: Path, server: SimulatedServer) -> None:
    """A number that is not offered, a file, a column and an address that are not there: what was answered stays."""
    shown = at_a_terminal(f"99\nno.csv\n\nbodi\nbody\nlocalhost\n{server.base_url}\nmy-model\n", OLLAMA_HOST="x:9")
    for words in ("folder '99'", "folder 'no.csv'", "did you mean 'body'", "'localhost' is no address"):
        assert words in shown
    assert job()["client"]["base_url"] == server.base_url


def test_without_a_terminal_it_asks_nothing(folder: Path) -> None:
    """The sample texts: no file of the user's goes to a server that was not chosen."""
    result = init("--client", "local")
    assert result.exit_code == 0, result.output
    assert job()["input"] == "job_rows.jsonl"
    assert len(Path("job_rows.jsonl").read_text().splitlines()) == 8
