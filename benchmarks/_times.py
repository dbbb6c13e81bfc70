"""
How long a simulated server will take for each row, and how fast the best client could be with that.

Pure. Knows nothing of clients.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import replace

from nemo_llm_stage.testing import ServerConfig
from nemo_llm_stage.testing.simulator.generation import check_request, service_time_for

MODEL = "sim"
MAX_SEEDS = 50
NEAR = 1.2


def choose_times(texts: Sequence[str], slots: int, mean_s: float, sigma: float) -> tuple[ServerConfig, list[float]]:
    """
    Return a server and the time that each row will take there.

    Of the server's seeds, the first for which greedy FIFO ends near the lower bound, if any does: where one long row at
    the end decides, every client looks perfect.
    """
    median_s = mean_s / math.exp(sigma**2 / 2)
    config = ServerConfig(
        model=MODEL, max_num_seqs=slots, service_time_s=median_s, service_time_sigma=sigma, max_recorded=0
    )
    for seed in range(MAX_SEEDS):
        config = replace(config, seed=seed)
        times = service_times(texts, config)
        if greedy_makespan_s(times, slots) <= NEAR * max(sum(times) / slots, max(times)):
            break
    return config, times


def service_times(texts: Sequence[str], config: ServerConfig) -> list[float]:
    """Return the seconds that the server will take for each row."""
    bodies = [{"model": MODEL, "messages": [{"role": "user", "content": text}]} for text in texts]
    return [service_time_for(check_request(body, is_chat=True, config=config), config) for body in bodies]


def greedy_makespan_s(times: Sequence[float], slots: int) -> float:
    """Return when the last row ends if each row starts, in order, the moment that a slot is free."""
    ends = [0.0] * slots
    for time_s in times:
        heapq.heapreplace(ends, ends[0] + time_s)
    return max(ends)
