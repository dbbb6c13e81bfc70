from __future__ import annotations

import http.client
import os
from pathlib import Path

import pytest

from nemo_llm_stage.errors import ConfigError, RunError
from nemo_llm_stage.testing import Fault, SimulatedServer, SimulatedServerProcess


@pytest.fixture(scope="module")
def server():
    """One child for all tests of this file; each resets it."""
    with SimulatedServerProcess(max_num_seqs=4, api_key="canary-key") as process:
        yield process


@pytest.fixture(autouse=True)
def clean(server):
    server.faults = []
    server.reset()


def chat(http_connection, content: str):
    body = {"model": "sim", "messages": [{"role": "user", "content": content}]}
    return http_connection.ask("POST", "/v1/chat/completions", body, {"authorization": "Bearer canary-key"})


def test_it_answers_and_tells_what_it_saw(server, http_to):
    """Its stats come over HTTP and are the same as those of a server in a thread."""
    assert chat(http_to(server), "hello").status == 200
    stats = server.stats
    assert (stats.num_requests, stats.by_status, stats.slots) == (1, {200: 1}, 4)
    assert server.pid not in (None, os.getpid())


def test_faults_can_be_switched(server, http_to):
    """Assigned in the parent, in force in the child."""
    server.faults = [Fault(503, contains="bad")]
    assert [chat(http_to(server), content).status for content in ("bad", "good")] == [503, 200]


def test_the_key_is_on_no_command_line(server):
    """Whoever lists processes sees no secret."""
    assert b"canary-key" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()


def test_poison_ends_the_process_and_it_starts_again_on_its_port(server, http_to):
    """The exit fault ends the child with code 1; start() brings it back where it was, with its faults."""
    server.faults = [Fault("exit", contains="poison")]
    port = server.port
    with pytest.raises((OSError, http.client.HTTPException)):
        chat(http_to(server), "poison")
    assert server.wait() == 1
    assert server.pid is None
    server.start()
    assert port == server.port
    assert chat(http_to(server), "water").status == 200


def test_kill_and_start(server, http_to):
    """After SIGKILL connections are refused until it is started again; its counts begin anew."""
    chat(http_to(server), "hello")
    server.kill()
    with pytest.raises(ConnectionRefusedError):
        chat(http_to(server), "hello")
    server.start()
    assert server.stats.num_requests == 0


def test_it_ends_by_itself_on_sigterm(server):
    """A clean end has exit code 0."""
    assert server.terminate() == 0
    server.start()


def test_a_port_that_is_taken_is_told():
    """The start fails with an error instead of waiting."""
    with SimulatedServer() as taken, pytest.raises(RunError, match="did not start"):
        SimulatedServerProcess(port=taken.port).start()


def test_functions_are_refused():
    """What cannot be sent to another process is told before one is started."""
    with pytest.raises(ConfigError, match="SimulatedServer"):
        SimulatedServerProcess(service_time_s=lambda body: 0.0).start()
