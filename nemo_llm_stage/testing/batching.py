"""Continuous batching (stub)."""

from __future__ import annotations

from nemo_llm_stage.testing.config import ServerConfig
from nemo_llm_stage.testing.engine import SlotEngine
from nemo_llm_stage.testing.stats import StatsRecorder


class BatchingEngine(SlotEngine):
    def __init__(self, config: ServerConfig, stats: StatsRecorder) -> None:
        super().__init__(config.max_num_seqs, config.max_queue, stats)
