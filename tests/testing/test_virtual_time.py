"""Virtual time: minutes take no time, and what happens in them happens in order."""

from __future__ import annotations

import asyncio
import time

import pytest

from nemo_llm_stage import AsyncHTTPClient
from nemo_llm_stage.client.clock import SYSTEM_CLOCK
from nemo_llm_stage.testing import ServerConfig
from nemo_llm_stage.testing.virtual_time import run_in_virtual_time, simulated_service


def test_an_hour_passes_at_once() -> None:
    """The process's clock goes along, the clients' too, and afterwards tells the time again."""

    async def wait() -> float:
        began_s, clients_began_s = time.monotonic(), SYSTEM_CLOCK.monotonic()
        await SYSTEM_CLOCK.sleep(3600)
        assert SYSTEM_CLOCK.monotonic() - clients_began_s == pytest.approx(3600)
        return time.monotonic() - began_s

    began_s = time.monotonic()
    assert run_in_virtual_time(wait) == pytest.approx(3600)
    assert 0 <= time.monotonic() - began_s < 60
    assert 0 <= SYSTEM_CLOCK.monotonic() - began_s < 60


def test_a_client_and_a_server_keep_the_same_time() -> None:
    """Ten requests in two slots of a minute each take five minutes."""

    async def ask() -> float:
        async with simulated_service(ServerConfig(max_num_seqs=2, service_time_s=60.0)) as (port, service):
            client = AsyncHTTPClient(f"http://127.0.0.1:{port}/v1", max_concurrent_requests=64)
            began_s = time.monotonic()
            messages = [{"role": "user", "content": "Hello"}]
            await asyncio.gather(*(client.complete(messages=messages, model="sim") for _ in range(10)))
            await client.aclose()
            assert service.stats().max_in_flight == 10
            return time.monotonic() - began_s

    assert run_in_virtual_time(ask) == pytest.approx(300, abs=1)


def test_what_is_left_on_the_loop_is_ended() -> None:
    """An error too comes out, and the clock is the real one again."""
    real = time.monotonic

    async def fail() -> None:
        asyncio.get_running_loop().create_task(asyncio.sleep(10**9))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_in_virtual_time(fail)
    assert time.monotonic is real
