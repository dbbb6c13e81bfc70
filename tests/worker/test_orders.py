"""What the driver orders reaches the workers with the next call, and they follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage import AsyncHTTPClient, LLMStage
from nemo_llm_stage.client.throttle import Grant, Throttle
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.job.prepare import prepare_job
from nemo_llm_stage.testing import SimulatedServer
from nemo_llm_stage.worker.engine import RunStatus
from nemo_llm_stage.worker.in_process import LocalEngine
from nemo_llm_stage.worker.orders import Need, Orders
from nemo_llm_stage.worker.spec import spec_of


class Script:
    """Gives every worker what a function of its need says."""

    is_draining = False

    def __init__(self, orders: Callable[[Need], Orders]) -> None:
        self._orders = orders
        self.needs: list[Need] = []

    def orders_of(self, worker: str, need: Need) -> Orders:
        self.needs.append(need)
        return self._orders(need)

    def forget(self, worker: str) -> None:
        raise AssertionError(f"{worker} is alive")


def run(
    server: SimulatedServer, folder: Path, script: Script, monitor: Callable[[RunStatus], Any], limit: int = 4
) -> int:
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(60)]}), folder / "in.parquet")
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=limit)
    stage = LLMStage(client=client, model="sim", prompt="{{ text }}", output_column="x")
    job = prepare_job(stage, folder / "in.parquet", folder / "out", JobSettings(rows_per_partition=20))
    try:
        return sum(report.counters.num_rows for report in LocalEngine().run(spec_of(job), job.pending, monitor, script))
    finally:
        stage.close()


def test_a_pause_holds_everything_until_it_ends(tmp_path: Path) -> None:
    """Nothing is sent meanwhile."""
    sent_in_pause: list[int] = []

    def orders(need: Need) -> Orders:
        return Orders(Throttle(is_paused=len(sent_in_pause) < 3))

    def monitor(status: RunStatus) -> None:
        if len(sent_in_pause) < 3:
            sent_in_pause.append(server.stats.num_requests)

    with SimulatedServer() as server:
        assert run(server, tmp_path, Script(orders), monitor) == 60
    assert sent_in_pause == [0, 0, 0]


def test_a_limit_can_be_raised_while_the_job_runs(tmp_path: Path) -> None:
    """More requests than the client was made for are in flight then."""
    with SimulatedServer(service_time_s=0.05) as server:
        script = Script(lambda need: Orders(Throttle(max_concurrent_requests=12)))
        assert run(server, tmp_path, script, lambda status: None, limit=2) == 60
        assert 6 <= server.stats.max_in_flight <= 12


def test_a_worker_spends_no_more_than_it_was_granted(tmp_path: Path) -> None:
    """It reports what it spent, and waits for more."""
    num_sent: list[int] = []

    def orders(need: Need) -> Orders:
        is_open = len(num_sent) >= 3
        return Orders(Throttle(grant=Grant(num_requests=60 if is_open else 7)))

    with SimulatedServer() as server:
        script = Script(orders)
        assert run(server, tmp_path, script, lambda status: num_sent.append(server.stats.num_requests)) == 60
    assert num_sent[:3] == [7, 7, 7]
    spending = script.needs[-1].spending
    assert spending.num_requests > 7
    assert spending.output_tokens > 0
