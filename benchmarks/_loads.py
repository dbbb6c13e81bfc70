"""The loads of bench_auto: simulated servers, and who else uses them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from _round_robin import take_turns

from nemo_llm_stage.testing import Fault, ServerConfig
from nemo_llm_stage.testing.simulator.service import Service
from nemo_llm_stage.testing.virtual_time import simulated_service

ANSWER_TOKENS, ANSWER_SIGMA = 200, 0.5
MEAN_TOKENS = ANSWER_TOKENS * math.exp(ANSWER_SIGMA**2 / 2)


@dataclass(frozen=True)
class Load:
    """
    A server, and who else uses it.

    Attributes:
        settings: Of the server.
        num_servers: Behind one address.
        others: From and to which second another client has how many requests in flight.
        starts_after_s: Seconds until the server is up.
        words: Of each prompt.
        faults: Of the servers.
    """

    settings: dict[str, Any]
    num_servers: int = 1
    others: tuple[float, float, int] | None = None
    starts_after_s: float = 0.0
    words: int = 60
    faults: tuple[Fault, ...] = ()


LIMITED: dict[str, Any] = {"max_num_seqs": 128, "requests_per_minute": 360, "has_metrics": False}
LOADS = {
    "slots": Load({"max_num_seqs": 128}),
    "many slots": Load({"max_num_seqs": 320}),
    "few slots": Load({"max_num_seqs": 8}),
    "kv cache": Load({"max_num_seqs": 512, "num_kv_blocks": 1600}),
    "two replicas": Load({"max_num_seqs": 64}, num_servers=2),
    "no metrics": Load({"max_num_seqs": 128, "has_metrics": False}),
    "many slots, no metrics": Load({"max_num_seqs": 320, "has_metrics": False}),
    "few slots, no metrics": Load({"max_num_seqs": 8, "has_metrics": False}),
    "kv cache, no metrics": Load({"max_num_seqs": 512, "num_kv_blocks": 1600, "has_metrics": False}),
    "rate limit": Load(LIMITED),
    "rate headers": Load({**LIMITED, "rate_limit_headers": True}),
    "full queue": Load({"max_num_seqs": 64, "max_queue": 16}),
    "full queue, no metrics": Load({"max_num_seqs": 64, "max_queue": 16, "has_metrics": False}),
    "6 % refused": Load({"max_num_seqs": 128}, faults=(Fault(429, 0.06, retry_after_s=5.0),)),
    "6 % refused, no metrics": Load({"max_num_seqs": 128, "has_metrics": False}, faults=(Fault(429, 0.06),)),
    "another client": Load({"max_num_seqs": 128}, others=(60.0, 120.0, 96)),
    "slow start": Load({"max_num_seqs": 128}, starts_after_s=20.0),
}
SMALL = {name: LOADS[name] for name in ("slots", "no metrics", "few slots", "few slots, no metrics", "kv cache")}


@asynccontextmanager
async def servers_of(load: Load, seed: int = 0) -> AsyncIterator[tuple[str, list[Service]]]:
    """Start the load's servers; yield their one address and them."""
    config = ServerConfig(
        scheduler="batching",
        max_model_len=2048,
        answer_tokens=ANSWER_TOKENS,
        answer_tokens_sigma=ANSWER_SIGMA,
        prefix_caching=False,
        startup_delay_s=load.starts_after_s,
        max_recorded=0,
        seed=seed,
        **load.settings,
    )
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(simulated_service(config, load.faults)) for _ in range(load.num_servers)
        ]
        port = servers[0][0]
        if len(servers) > 1:
            listener = await take_turns([port for port, _ in servers])
            stack.callback(listener.close)
            port = listener.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1", [service for _, service in servers]
