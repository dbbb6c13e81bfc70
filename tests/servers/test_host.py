"""A server's process: seen as it becomes healthy and as it ends, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_llm_stage.servers.health import PORTS, free_port
from nemo_llm_stage.servers.host import HostStatus, ServerHost
from nemo_llm_stage.servers.plan import ServerPlan

TIMEOUT_S = 20.0
MakePlan = Callable[..., ServerPlan]


def until(host: ServerHost, state: str) -> HostStatus:
    give_up_s, status = time.monotonic() + TIMEOUT_S, host.status()
    while status.state != state:
        assert time.monotonic() < give_up_s, status
        status = host.status(status.version, 1.0)
    return status


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def assert_ends(pid: int) -> None:
    give_up_s = time.monotonic() + TIMEOUT_S
    while not has_ended(pid):
        assert time.monotonic() < give_up_s, f"{pid} is left behind"
        time.sleep(0.02)


def test_it_becomes_healthy_and_is_ended_with_its_children(toy: MakePlan, tmp_path: Path) -> None:
    """Also those that have left its session; the log of a server that never failed is removed."""
    host = ServerHost(toy("children", str(tmp_path / "pid")))
    host.start()
    status = until(host, "healthy")
    assert status.url.startswith("http://127.0.0.1:")
    child = int((tmp_path / "pid").read_text())
    assert not has_ended(child)
    host.close()
    assert has_ended(child)
    assert not Path(status.log).exists()


def test_its_end_is_told_with_the_line_that_says_why(toy: MakePlan, tmp_path: Path) -> None:
    """The log stays."""
    host = ServerHost(toy("says", "CUDA out of memory. Tried", "to allocate"), log_folder=str(tmp_path))
    host.start()
    status = until(host, "ended")
    host.close()
    assert status.why == "exit code 1, out of memory: CUDA out of memory. Tried"
    assert Path(status.log).read_text().startswith("CUDA")


def test_a_program_that_is_not_there_is_named(toy: MakePlan) -> None:
    """As in a shell, with exit code 127."""
    host = ServerHost(ServerPlan(words=("no-such-program", "{port}"), num_gpus=0))
    host.start()
    assert "there is no such program: cannot start 'no-such-program'" in until(host, "ended").why
    host.close()


def test_it_is_given_up_where_it_is_not_healthy_in_time(toy: MakePlan) -> None:
    """While it starts, the end of its log is shown."""
    host = ServerHost(toy("sleeps", start_timeout_s=1.0))
    host.start()
    status = until(host, "ended")
    host.close()
    assert status.why == "not healthy within 1 s: loading weights"
    assert status.tail == ("loading weights",)


def test_a_port_that_is_taken_is_told_before_anything_starts(toy: MakePlan) -> None:
    """Whoever listens there would be taken for the server."""
    host = ServerHost(toy())
    host.start()
    port = int(until(host, "healthy").url.rpartition(":")[2].partition("/")[0])
    other = ServerHost(toy(port=port))
    other.start()
    assert "port taken" in until(other, "ended").why
    other.close()
    host.close()
    assert free_port(port) == port
    assert free_port() in PORTS


def test_one_that_only_its_own_node_can_reach_is_told(toy: MakePlan) -> None:
    """SGLang and llama.cpp listen on 127.0.0.1 if they are not told otherwise."""
    host = ServerHost(toy("hides"), ip="127.0.0.2")
    host.start()
    assert "listens on 127.0.0.1 alone: other nodes cannot reach it; add --host" in until(host, "ended").why
    host.close()


def test_what_a_secret_variable_holds_is_not_shown(toy: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may write its key into its log."""
    monkeypatch.setenv("VLLM_API_KEY", "sk-canary-1234")
    host = ServerHost(toy("says", "ValueError: key sk-canary-1234 is bad"))
    host.start()
    assert until(host, "ended").reason.line == "ValueError: key *** is bad"
    host.close()


def test_a_long_secret_is_not_shown_in_part(toy: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is cut after that."""
    monkeypatch.setenv("HF_TOKEN", "ey" + 600 * "Jx")
    host = ServerHost(toy("says", f"ValueError: {100 * 'a '} {os.environ['HF_TOKEN']}"))
    host.start()
    assert "eyJx" not in until(host, "ended").why
    host.close()


def test_what_cannot_even_be_started_is_told(toy: MakePlan, tmp_path: Path) -> None:
    """Nobody waits for it: its log cannot be written, or a variable cannot be one."""
    (tmp_path / "file").touch()
    for host in (ServerHost(toy(), log_folder=str(tmp_path / "file")), ServerHost(toy(env={"A": "\0"}))):
        host.start()
        status = until(host, "ended")
        assert "it cannot be started: " in status.why
        assert status.reason.is_lasting
        host.close()


def test_a_command_that_leaves_its_server_in_the_background_is_told() -> None:
    """What it leaves is ended."""
    host = ServerHost(ServerPlan(words=("sh", "-c", "sleep 600 & exit 0", "{port}"), num_gpus=0))
    host.start()
    assert until(host, "ended").why.startswith("exit code 0, its command ended, though it has to run")
    host.close()


def test_bytes_that_are_no_text_and_endless_lines_do_not_disturb(tmp_path: Path) -> None:
    """What follows them is still read."""
    code = "head -c 200000 /dev/urandom; head -c 100000 /dev/zero; echo; echo ValueError: no luck >&2; exit 3"
    host = ServerHost(ServerPlan(words=("sh", "-c", code, "{port}"), num_gpus=0), log_folder=str(tmp_path))
    host.start()
    assert until(host, "ended").why == "exit code 3, ValueError: no luck"
    host.close()


@pytest.mark.slow
def test_it_ends_with_whoever_started_it_by_kill_9(toy: MakePlan, tmp_path: Path) -> None:
    """Without anybody's help but its watchdog's, children included."""
    plan = toy("children", str(tmp_path / "pid"))
    code = (
        "from nemo_llm_stage.servers.host import ServerHost; from nemo_llm_stage.servers.plan import ServerPlan\n"
        f"host = ServerHost(ServerPlan(words={plan.words!r}, num_gpus=0, stop_timeout_s=1.0)); host.start()\n"
        "status = host.status()\n"
        "while status.state != 'healthy': status = host.status(status.version, 1.0)\n"
        "print(status.pid, flush=True); input()"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert starter.stdout is not None
    pid, child = int(starter.stdout.readline()), int((tmp_path / "pid").read_text())
    assert not has_ended(pid)
    os.kill(starter.pid, signal.SIGKILL)
    starter.communicate()
    assert_ends(pid)
    assert_ends(child)
