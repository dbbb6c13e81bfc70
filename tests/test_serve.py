"""`nemo-llm-stage serve` on this machine: its file of addresses is its own, and what it leaves is nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nemo_llm_stage import ConfigError
from nemo_llm_stage.cli import main
from nemo_llm_stage.client.endpoints.source import source_of
from nemo_llm_stage.serving import EndpointsFile
from nemo_llm_stage.testing import SimulatedServer

TOY = Path(__file__).parent / "servers" / "toy_server.py"
TIMEOUT_S = 60.0


@pytest.fixture
def endpoints(tmp_path: Path) -> Path:
    return tmp_path / "endpoints.txt"


def serve(folder: Path, text: str, *arguments: Any) -> Result:
    (folder / "servers.yaml").write_text(text)
    words = ["serve", folder / "servers.yaml", "--endpoints", folder / "endpoints.txt", *arguments]
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize("text", ["servers:\n", "servers: [a]\n", "servers: vllm serve m\n"])
def test_a_section_without_settings_is_told(tmp_path: Path, text: str) -> None:
    """With an example."""
    result = serve(tmp_path, text)
    assert result.exit_code == 2
    assert "`servers` has no settings, e.g. `command: vllm" in result.output


def test_a_file_that_is_something_else_stays(tmp_path: Path, endpoints: Path) -> None:
    """For instance a list that somebody wrote by hand."""
    endpoints.write_text("http://a:8000/v1\n")
    result = serve(tmp_path, "command: [false, '{port}']\nnum_gpus: 0\n")
    assert result.exit_code == 2
    assert "is another file, not one of `serve`" in result.output
    assert endpoints.read_text() == "http://a:8000/v1\n"


def test_one_process_keeps_the_file(endpoints: Path) -> None:
    """A second one does not take it; a process that is gone has left it to anybody."""
    EndpointsFile(endpoints).take()
    with pytest.raises(ConfigError, match="another `nemo-llm-stage serve` keeps"):
        EndpointsFile(endpoints).take()
    head = endpoints.read_text()
    endpoints.write_text(head.replace(f'"pid": {os.getpid()}', f'"pid": {2**22 + 1}'))
    EndpointsFile(endpoints).take()
    assert endpoints.read_text() == head


def test_a_file_of_another_machine_is_kept_as_long_as_its_servers_answer(endpoints: Path) -> None:
    """Whether its process lives cannot be seen from here."""
    with SimulatedServer() as server:
        file = EndpointsFile(endpoints)
        file.write((server.base_url,))
        endpoints.write_text(endpoints.read_text().replace('"machine": "', '"machine": "other-'))
        with pytest.raises(ConfigError, match="keeps"):
            EndpointsFile(endpoints).take()
    EndpointsFile(endpoints).take()
    assert source_of(str(endpoints)).read() == ()


def test_a_file_that_was_removed_comes_back(endpoints: Path) -> None:
    """Its readers would see no servers."""
    file = EndpointsFile(endpoints)
    file.write(("http://a:1/v1",))
    endpoints.unlink()
    file.write(("http://a:1/v1",))
    assert [one.base_url for one in source_of(str(endpoints)).read()] == ["http://a:1/v1"]


@contextmanager
def served(folder: Path, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """`serve` with a toy server that is up."""
    command = [sys.executable, "-S", str(TOY), "{port}", "children", str(folder / "pid")]
    (folder / "servers.yaml").write_text(json.dumps({"command": command, "num_gpus": 0, "stop_timeout": 1, **settings}))
    words = [sys.executable, "-m", "nemo_llm_stage", "serve", "servers.yaml"]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        until(lambda: "http://" in _text_of(folder / "endpoints.txt") or process.poll() is not None)
        yield process
    finally:
        process.kill()
        process.communicate()


def _text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def until(is_true: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + TIMEOUT_S
    while not is_true():
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_its_servers_and_names_none(tmp_path: Path, signum: int) -> None:
    """By Ctrl-C, by SIGTERM, and when its terminal is closed."""
    with served(tmp_path) as process:
        child = int((tmp_path / "pid").read_text())
        process.send_signal(signum)
        told, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, told
    assert "Traceback" not in told
    assert "http://" not in (tmp_path / "endpoints.txt").read_text()
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.slow
def test_a_file_that_cannot_be_written_ends_no_server(tmp_path: Path) -> None:
    """It is told, and written as soon as it can be."""
    with served(tmp_path) as process:
        assert process.stdout is not None
        path = tmp_path / "endpoints.txt"
        path.unlink()
        path.mkdir()
        (path / "x").touch()
        child = int((tmp_path / "pid").read_text())
        os.kill(_parent_of(child), signal.SIGKILL)
        told = next(line for line in process.stdout if "cannot write" in line)
        (path / "x").unlink()
        path.rmdir()
        until(lambda: "http://" in _text_of(path))
        assert process.poll() is None, told


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
