"""Several workers divide the servers, or share one server's limit."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from job_fixtures import JobRunner

from nemo_llm_stage import AsyncHTTPClient
from nemo_llm_stage.testing import SimulatedServer


def test_workers_share_the_limit_of_one_server(folder: Any) -> None:
    """Together they have no more in flight than one would."""
    with SimulatedServer(service_time_s=0.01) as server:
        runner = JobRunner(server, folder)
        client = AsyncHTTPClient(server.base_url, max_concurrent_requests=4)
        result = runner.run(runner.stage(client=client), actors=3)
        assert result.counters.num_answered == 40
        assert 1 < server.stats.max_in_flight <= 4


def test_workers_divide_the_servers(folder: Any) -> None:
    """Each server is asked by one of them, up to its limit."""
    with ExitStack() as stack:
        servers = [stack.enter_context(SimulatedServer(service_time_s=0.01)) for _ in range(4)]
        runner = JobRunner(servers[0], folder)
        client = AsyncHTTPClient([server.base_url for server in servers], max_concurrent_requests=2)
        result = runner.run(runner.stage(client=client), actors=2)
        assert result.counters.num_answered == 40
        assert all(0 < server.stats.max_in_flight <= 2 for server in servers)


def test_the_stage_asks_all_servers_again_after_a_job(folder: Any) -> None:
    """A job of several workers leaves nothing behind."""
    with SimulatedServer() as first, SimulatedServer() as second:
        runner = JobRunner(first, folder)
        client = AsyncHTTPClient([first.base_url, second.base_url], max_concurrent_requests=3)
        stage = runner.stage(client=client)
        runner.run(stage, actors=2)
        assert stage.max_concurrent_requests == 6
