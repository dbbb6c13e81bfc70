"""What a stage holds open: interrupted, forked, copied, or left by a callback that fails."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from nemo_llm_stage import AsyncHTTPClient, LLMStage, RunError
from nemo_llm_stage.testing import SimulatedServer, expected_answer

TABLE = pa.table({"text": [f"row {i}" for i in range(50)]})


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer() as server:
        yield server


def make_stage(server: SimulatedServer, **settings: Any) -> LLMStage:
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=4)
    return LLMStage(**{"client": client, "model": "sim", "prompt": "Say {{ text }}", "output_column": "x"} | settings)


@pytest.mark.slow
def test_a_stage_works_without_standard_files(server: SimulatedServer) -> None:
    """Some supervisors close stdin; uvloop would abort the process on a socket that has its number."""
    code = (
        "import os, pandas as pd; os.close(0)\n"
        "from nemo_llm_stage import AsyncHTTPClient, LLMStage\n"
        f"stage = LLMStage(client=AsyncHTTPClient({server.base_url!r}), model='sim', prompt='{{{{ t }}}}',"
        " output_column='x')\n"
        "print(len(stage.process(pd.DataFrame({'t': ['a', 'b']}))['x'].dropna()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "2\n"), result.stderr


def test_an_interrupt_cancels_the_rows_that_were_waited_for() -> None:
    """Ctrl-C in process(): the requests in flight are dropped, and no further one is sent."""
    arrived = threading.Semaphore(0)

    def service_time_s(body: dict[str, Any]) -> float:
        arrived.release()
        return 60.0

    with SimulatedServer(service_time_s=service_time_s) as server:
        stage = make_stage(server)

        def interrupt() -> None:
            for _ in range(4):
                arrived.acquire()
            os.kill(os.getpid(), signal.SIGINT)

        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            stage.process(TABLE)
        interrupting.join()
        assert stage.submit([]).result() == []  # runs on the loop after the cancellation
        assert stage.num_in_flight == 0
        assert server.stats.num_requests == 4
        stage.close()


def test_a_callback_that_fails_ends_its_rows_and_no_others(server: SimulatedServer) -> None:
    """With its own error as the cause; the stage can be used on."""
    stage = make_stage(server)

    def on_done(outcome: Any) -> None:
        raise ZeroDivisionError("counting failed")

    with pytest.raises(ZeroDivisionError, match="counting failed"):
        stage.submit([{"text": "a"}], on_done=on_done).result()
    assert stage.process(TABLE).num_rows == 50
    stage.close()


def test_a_parser_that_exits_ends_the_run_and_not_the_event_loop(server: SimulatedServer) -> None:
    """A waiting thread gets an error, not silence."""

    def parse(text: str) -> str:
        sys.exit(3)

    stage = make_stage(server, parser=parse)
    for _ in range(2):
        with pytest.raises(RunError, match="SystemExit: 3"):
            stage.process(TABLE)
    stage.close()


def test_a_copy_opens_its_own(server: SimulatedServer) -> None:
    """Closing one leaves the other open."""
    stage = make_stage(server)
    stage.process(TABLE)
    other = copy.deepcopy(stage)
    other.process(TABLE)
    other.close()
    assert stage.process(TABLE).column("x").to_pylist()[0] == expected_answer(
        [{"role": "user", "content": "Say row 0"}]
    )
    stage.close()


FORK = """
import os, sys, threading
import pyarrow as pa
from nemo_llm_stage import AsyncHTTPClient, LLMClient, LLMStage

class Blocking(LLMClient):
    def setup(self): ...
    def query_model(self, *, messages, **_):
        barrier.wait()  # so that all threads of the pool are started
        return ["blocking"]

barrier = threading.Barrier(8)

clients = {"http": lambda: AsyncHTTPClient(sys.argv[1]), "sync": Blocking}
stage = LLMStage(client=clients[sys.argv[2]](), model="sim", prompt="{{ text }}", output_column="x")
table = pa.table({"text": [f"row {i}" for i in range(16)]})
before = stage.process(table).column("x").to_pylist()
child = os.fork()
if child == 0:
    same = stage.process(table).column("x").to_pylist() == before
    stage.close()
    os._exit(7 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert stage.process(table).column("x").to_pylist() == before
stage.close()
"""


@pytest.mark.parametrize("client", ["http", "sync"])
def test_a_stage_works_on_in_a_forked_child_and_in_its_parent(server: SimulatedServer, client: str) -> None:
    """Threads and event loops do not survive a fork; the child opens its own and leaves the parent's alone."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, server.base_url, client]
    subprocess.run(command, check=True, timeout=60)
