"""A client with ``max_concurrent_requests="auto"`` at servers: slots, queues, rate limits, odd metrics."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clocks import FastClock

from nemo_llm_stage import AsyncHTTPClient, ConfigError, LLMStage, run_job
from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.client.governor.governor import START_LIMIT
from nemo_llm_stage.config.load import make_config
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.state.timeline import read_timelines
from nemo_llm_stage.stage.scheduler import Scheduler
from nemo_llm_stage.testing import Fault, ServerConfig, ServerStats, SimulatedServer
from nemo_llm_stage.testing.virtual_time import run_in_virtual_time, simulated_service
from tests.client.conftest import MESSAGES, RawServer, answer_bytes, response


def run_rows(
    num_rows: int, limit: Any = "auto", faults: Sequence[Fault] = (), **settings: Any
) -> tuple[EndpointStatus, ServerStats]:
    """Ask `num_rows` rows in virtual time; all must be answered. Returns how the server stands, and what it saw."""

    async def run() -> tuple[EndpointStatus, ServerStats]:
        async with simulated_service(ServerConfig(**settings), faults) as (port, service):
            client = AsyncHTTPClient(f"http://127.0.0.1:{port}/v1", max_concurrent_requests=limit, max_retries=1000)

            async def run_row(number: int) -> None:
                messages = [{"role": "user", "content": f"Row {number}"}]
                await client.complete(messages=messages, model="sim", generation_config={"max_tokens": 50})

            await Scheduler(client.limit).run(range(num_rows), run_row)
            [status] = client.endpoint_statuses()
            await client.aclose()
            return status, service.stats()

    return run_in_virtual_time(run)


def test_the_servers_slots_are_filled() -> None:
    """Beyond any number that was there at the start, and with little more than a small queue."""
    status, stats = run_rows(2000, max_num_seqs=150, service_time_s=4.0)
    assert stats.max_running == 150
    assert status.mode == "metrics"
    assert 150 <= (status.limit or 0) <= 180


def test_a_number_stays_as_it_is() -> None:
    """And nothing is asked of the server's metrics."""
    status, stats = run_rows(200, limit=7, max_num_seqs=150, service_time_s=0.2)
    assert stats.max_in_flight == 7
    assert (status.mode, status.limit, status.bottleneck) == ("fixed", 7, None)


def test_without_metrics_the_work_is_followed() -> None:
    """A server that has none is asked like any other."""
    status, stats = run_rows(4000, max_num_seqs=150, service_time_s=2.0, has_metrics=False)
    assert stats.max_running == 150
    assert status.mode == "throughput"


@pytest.mark.slow
def test_a_rate_limit_is_followed_without_a_storm_of_refusals() -> None:
    """Few of the requests are refused, and each row is answered."""
    status, stats = run_rows(1000, requests_per_minute=600, service_time_s=2.0, has_metrics=False)
    assert stats.by_status[200] == 1000
    assert stats.by_status[429] <= 120
    assert (status.mode, status.state) == ("refusals", "healthy")


@pytest.mark.slow
def test_rate_limit_headers_are_followed_ahead_of_refusals() -> None:
    """After the first moment a provider that says what is left refuses hardly anything, and is used to the full."""
    settings = {"requests_per_minute": 600, "service_time_s": 2.0, "has_metrics": False}
    _, stats = run_rows(1000, rate_limit_headers=True, **settings)
    assert stats.by_status[429] <= START_LIMIT + 10
    assert stats.first_start_monotonic_s is not None
    assert stats.last_end_monotonic_s is not None
    needed_s = stats.last_end_monotonic_s - stats.first_start_monotonic_s
    assert needed_s <= 1.15 * 100


@pytest.mark.slow
@pytest.mark.parametrize("has_metrics", [True, False])
def test_refusals_by_chance_slow_nothing_down(has_metrics: bool) -> None:
    """A server that refuses some requests however few are sent is filled all the same, and people are told."""
    faults = [Fault(429, 0.06, retry_after_s=5.0 if has_metrics else None)]
    status, stats = run_rows(4000, faults=faults, max_num_seqs=150, service_time_s=2.0, has_metrics=has_metrics)
    assert stats.by_status[200] == 4000
    assert stats.max_running == 150
    assert status.mode != "refusals"
    assert "% of the requests are refused, however few are sent" in (status.reason or "")
    assert stats.first_start_monotonic_s is not None
    assert stats.last_end_monotonic_s is not None
    assert stats.last_end_monotonic_s - stats.first_start_monotonic_s <= 1.6 * 4000 / 150 * 2.0


@pytest.mark.slow
def test_many_refusals_after_some_by_chance_are_heeded() -> None:
    """An overload is not taken for what went on before."""
    faults = [Fault(429, 0.06, until_s=60), Fault(429, 0.9, from_s=60, until_s=90)]
    settings = {"max_num_seqs": 50, "service_time_s": 2.0, "has_metrics": False}
    status, stats = run_rows(1800, faults=faults, **settings)
    _, of_fixed = run_rows(1800, limit=50, faults=faults, **settings)
    assert stats.by_status[200] == 1800
    assert status.mode == "refusals"
    assert stats.by_status[429] <= 0.3 * of_fixed.by_status[429]


def test_a_full_queue_is_no_outage() -> None:
    """503 of a server that says that it is healthy lowers the limit; the server is not left alone."""
    status, stats = run_rows(400, max_num_seqs=8, max_queue=4, service_time_s=1.0)
    assert stats.by_status[200] == 400
    assert stats.by_status[503] <= 150
    assert status.state == "healthy"
    assert (status.limit or 0) < 32


async def complete(base_url: str, num: int = 40) -> tuple[AsyncHTTPClient, list[Any]]:
    client = AsyncHTTPClient(base_url, max_concurrent_requests="auto", max_retries=0)
    client.clock = FastClock()
    request = (client.complete(messages=MESSAGES, model="sim") for _ in range(num))
    return client, await asyncio.gather(*request, return_exceptions=True)


@pytest.mark.parametrize(
    "script",
    [
        [response(b"vllm:num_requests_running NaN\nvllm:num_requests_waiting x\n" + answer_bytes())],
        [response(b"#" * (3 << 20))],
        [response(b"\xff\xfe", "content-encoding: gzip")],
        [None],
    ],
    ids=["odd", "long", "no gzip", "closed"],
)
def test_odd_metrics_fail_no_request(script: list[bytes | None]) -> None:
    """They are left; the requests go on."""

    async def run() -> None:
        async with RawServer([response(answer_bytes())]) as server:
            good = server.script[0]
            client, first = await complete(server.base_url, 1)
            server.script = [script, good]
            _, more = await complete(server.base_url, 1)
            assert not isinstance(first[0], Exception)
            assert len(more) == 1
            await client.aclose()

    asyncio.run(run())


def test_nothing_goes_on_after_the_client_is_closed() -> None:
    """No task is left on the event loop."""

    async def run(base_url: str) -> set[asyncio.Task[Any]]:
        client, _ = await complete(base_url)
        await client.aclose()
        await asyncio.sleep(0)
        return asyncio.all_tasks() - {asyncio.current_task()}

    with SimulatedServer() as server:
        assert asyncio.run(run(server.base_url)) == set()


def test_a_client_can_be_pickled_and_says_what_it_is() -> None:
    """Before and after its first request."""
    with SimulatedServer() as server:
        client, _ = asyncio.run(complete(server.base_url))
        copy = pickle.loads(pickle.dumps(client))
        assert "max_concurrent_requests=auto" in repr(copy)
        [completion] = asyncio.run(complete(server.base_url, 1))[1]
        assert completion.texts


JOB = {"input": "in", "output": "out", "model": "m", "prompt": "{{ x }}", "output_column": "y"}


@pytest.mark.parametrize("value", ["auto", 7, "7"])
def test_a_job_file_takes_auto_or_a_number(value: Any) -> None:
    """Of a client of type http."""
    config = make_config({**JOB, "client": {"base_url": "http://h/v1", "max_concurrent_requests": value}})
    assert config.client.max_concurrent_requests == ("auto" if value == "auto" else 7)
    assert config.max_concurrent_requests >= 7


@pytest.mark.parametrize(
    ("client_type", "value"), [("http", 0), ("http", "fast"), ("http", 1.5), ("http", True), ("openai", "auto")]
)
def test_a_job_file_takes_nothing_else(client_type: str, value: Any) -> None:
    """The message names the setting."""
    client = {"type": client_type, "base_url": "http://h/v1", "max_concurrent_requests": value}
    with pytest.raises(ConfigError, match="max_concurrent_requests"):
        make_config({**JOB, "client": client})


@pytest.mark.slow
def test_a_job_reads_as_far_ahead_as_the_limit_needs(tmp_path: Path) -> None:
    """The hand-out of rows follows a limit that grows; where it went, and what held the work back, is told after."""
    pq.write_table(pa.table({"n": list(range(6000))}), tmp_path / "in.parquet")
    with SimulatedServer(max_num_seqs=200, service_time_s=0.2) as server:
        client = AsyncHTTPClient(server.base_url, max_concurrent_requests="auto")
        stage = LLMStage(client=client, model="sim", prompt="{{ n }}", output_column="x")
        settings = {"engine": "local", "progress": False, "rows_per_partition": 500}
        result = run_job(stage=stage, input=tmp_path / "in.parquet", output=tmp_path / "out", **settings)
        assert server.stats.max_running == 200
    assert result.counters.num_rows == 6000
    [endpoint] = result.endpoints
    assert endpoint.num_answered == 6000
    assert endpoint.moved
    assert endpoint.held_s["server"] > 0
    [timeline] = read_timelines(OutputFolder(str(tmp_path / "out")).state)
    assert any(event.kind == "in flight" and "requests in flight at most" in event.text for event in timeline.events)
