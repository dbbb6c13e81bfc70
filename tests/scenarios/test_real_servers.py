"""Several real llama.cpp servers behind one client: one dies, one joins."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from nemo_llm_stage import AsyncHTTPClient, LLMStage
from nemo_llm_stage.core import Outcome
from nemo_llm_stage.embedded.local_server import LocalServer

pytestmark = pytest.mark.local_model


def test_one_is_killed_and_one_is_added_by_the_file(tmp_path: Path) -> None:
    """Every row is answered once and none fails, though a request has no retries."""
    path = tmp_path / "endpoints.txt"
    milestones = {10: threading.Event(), 20: threading.Event()}
    num_done = 0

    def count(_: Outcome) -> None:
        nonlocal num_done
        num_done += 1
        if num_done in milestones:
            milestones[num_done].set()

    with LocalServer() as stays, LocalServer() as dies, LocalServer() as joins:
        path.write_text(f"{stays.base_url}\n{dies.base_url}\n")
        client = AsyncHTTPClient(str(path), max_concurrent_requests=2, max_retries=0)
        stage = LLMStage(
            client=client,
            model=stays.model,
            prompt="Say a word about {{ n }}.",
            output_column="x",
            generation_config={"max_tokens": 8, "temperature": 0.0},
            give_up_after_s=0.0,
        )
        future = stage.submit([{"n": f"number {number}"} for number in range(80)], on_done=count)
        assert milestones[10].wait(100)
        assert dies.pid is not None
        os.kill(dies.pid, signal.SIGKILL)
        assert milestones[20].wait(100)
        path.write_text(f"{stays.base_url}\n{dies.base_url}\n{joins.base_url}\n")
        outcomes = future.result(200)
        statuses = {status.url: status for status in client.endpoint_statuses()}
        stage.close()
    assert [outcome["x"].error for outcome in outcomes] == [None] * 80
    assert sum(status.num_answered for status in statuses.values()) == 80
    assert statuses[dies.base_url].is_down
    assert statuses[joins.base_url].num_answered > 0
