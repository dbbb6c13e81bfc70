"""Requests that a server has lost are sent again; at a server that is slow for everybody they get more time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from nemo_llm_stage import AsyncHTTPClient, GenerationConfig
from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.client.governor.ghosts import Ghosts
from nemo_llm_stage.client.governor.metrics import ServerLoad
from nemo_llm_stage.client.governor.timeouts import Timeouts
from nemo_llm_stage.stage.scheduler import Scheduler
from nemo_llm_stage.testing import Fault, ServerConfig, ServerStats
from nemo_llm_stage.testing.virtual_time import run_in_virtual_time, simulated_service


def run_rows(
    num_rows: int, faults: Sequence[Fault] = (), timeout: float = 600.0, **settings: Any
) -> tuple[float, EndpointStatus, ServerStats]:
    """Have all rows answered; return how long that took, how the server stands, and what it saw."""

    async def run() -> tuple[float, EndpointStatus, ServerStats]:
        async with simulated_service(ServerConfig(**settings), faults) as (port, service):
            client = AsyncHTTPClient(f"http://127.0.0.1:{port}/v1", timeout=timeout, max_retries=20)

            async def run_row(number: int) -> None:
                messages = [{"role": "user", "content": f"Row {number}."}]
                await client.complete(messages=messages, model="sim", generation_config={"max_tokens": 50})

            began_s = time.monotonic()
            await Scheduler(client.limit).run(range(num_rows), run_row)
            took_s = time.monotonic() - began_s
            [status] = client.endpoint_statuses()
            await client.aclose()
            await asyncio.sleep(1)  # virtual: the server sees who has left
            return took_s, status, service.stats()

    return run_in_virtual_time(run)


def test_a_request_that_the_server_has_lost_is_sent_again() -> None:
    """Within a minute after the others, in place of the ten of its timeout."""
    lost = [Fault("hang", contains="Row 777.", attempts=1), Fault("hang", contains="Row 1499.", attempts=1)]
    took_s, status, stats = run_rows(1500, lost, max_num_seqs=50, service_time_s=2.0)
    assert took_s < 150
    assert status.num_ghosts == stats.num_aborted == 2
    assert (status.state, stats.by_status[200]) == ("healthy", 1500)


@pytest.mark.slow
def test_a_long_request_is_no_ghost() -> None:
    """The server shows it."""
    _, status, stats = run_rows(
        201, max_num_seqs=50, scheduler="batching", answer_tokens=40, step_base_s=4.0, service_time_s=2.0
    )
    assert (status.num_ghosts, stats.num_aborted) == (0, 0)


def read(ghosts: Ghosts, shown: Sequence[tuple[float, float]], in_flight: int = 4) -> list[float | None]:
    """Give readings, one a second, as (running, output tokens so far)."""
    return [
        ghosts.sent_before(ServerLoad("vllm", running, 0, output_tokens=tokens), in_flight, second, 1.0)
        for second, (running, tokens) in enumerate(shown)
    ]


def test_metrics_of_one_server_of_several_make_no_ghosts() -> None:
    """They show less than is in flight, or a count of tokens that goes back."""
    assert not any(read(Ghosts(), [(2, 10)] * 20 + [(0, 10)] * 60))
    assert not any(read(Ghosts(), [(4, 100)] * 20 + [(0, 10)] * 60))
    assert not any(read(Ghosts(), [(0, 10)] * 60))


def test_ghosts_were_sent_before_the_server_showed_nothing() -> None:
    """And it has shown nothing for half a minute."""
    assert read(Ghosts(), [(4, 10)] * 20 + [(0, 10)] * 31)[-2:] == [None, 20]


@pytest.mark.slow
def test_a_slow_server_is_not_asked_again_and_again() -> None:
    """Without metrics the first requests wait 16 minutes in its queue, longer than the usual timeout."""
    settings = {"max_num_seqs": 4, "service_time_s": 60.0, "has_metrics": False}
    _, _, stats = run_rows(200, **settings)
    assert stats.num_aborted <= 40


@pytest.mark.parametrize(("latency_s", "expected"), [(10, None), (100, 2000), (400, 8000)])
def test_more_time_is_given_by_the_pace(latency_s: float, expected: float | None) -> None:
    """Twice what an answer of the most tokens takes; nothing where the usual time is enough."""
    timeouts = Timeouts()
    for _ in range(50):
        timeouts.note_answer(latency_s, 100)
    assert timeouts.of(GenerationConfig(max_tokens=1000)) == expected
    assert timeouts.of(GenerationConfig(max_tokens=None)) == (None if latency_s < 301 else 800)


def test_a_timeout_that_was_set_stays() -> None:
    """Also at a slow server."""

    async def run() -> int:
        config = ServerConfig(max_num_seqs=1, service_time_s=100.0, has_metrics=False)
        async with simulated_service(config) as (port, service):
            client = AsyncHTTPClient(f"http://127.0.0.1:{port}/v1", timeout=250.0, max_retries=0)
            asked = [client.complete(messages=[{"role": "user", "content": str(n)}], model="sim") for n in range(8)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            await client.aclose()
            await asyncio.sleep(1)  # virtual: the server sees who has left
            assert service.stats().num_aborted == 6
            return sum(isinstance(answer, Exception) for answer in answers)

    assert run_in_virtual_time(run) == 6
