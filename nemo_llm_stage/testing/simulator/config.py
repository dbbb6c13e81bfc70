"""
The settings of a simulated server, checked, in one frozen object.

Each field is also a flag of `nemo-llm-stage simulate-server`. Knows nothing of sockets or event loops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from nemo_llm_stage.errors import ConfigError

Body = dict[str, Any]
"""A request's JSON body."""

BLOCK_TOKENS = 16
"""Tokens in a KV cache block. Source: vLLM's default block size on GPUs."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """
    How a simulated server behaves. The defaults answer at once; `scheduler="batching"` decodes step by step.

    The step times are those of NVIDIA Dynamo's engine emulator 1.6, about an 8B model on one H100;
    benchmarks/bench_emulator.py compares the two.

    Attributes:
        model: Name, or names, that the server answers to.
        accept_any_model: Answer to every model name.
        api_key: The bearer token that requests must carry; None lets everyone in.
        max_model_len: Maximum tokens of prompt and answer together. A token is 4 characters.
        max_num_seqs: Requests that are served at the same time; the others wait, first come first served.
        max_queue: Most waiting requests; one more is refused with 503. None: no bound.
        scheduler: "slots" holds a slot for `service_time_s`; "batching" runs the steps of continuous batching.
        service_time_s: slots: seconds a request is served, or a function of its body; 0 answers at once.
        service_time_sigma: slots: above 0 the time is lognormal with median `service_time_s` and this sigma, and is the
            same each time for the same prompt.
        answer_tokens: Answers are filled up to so many tokens; None leaves them short (about 15).
        answer_tokens_sigma: Above 0 that number is lognormal with median `answer_tokens`, the same for the same prompt.
        reasoning_field: Also answer with some thinking, under this name ("reasoning", "reasoning_content").
        num_kv_blocks: batching: size of the KV cache in blocks of 16 tokens.
        prefix_caching: batching: reuse the blocks of equal prompt beginnings.
        max_num_batched_tokens: batching: most tokens that one step computes; longer prompts take several steps.
        step_base_s: batching: seconds of a step that decodes.
        step_per_seq_s: batching: seconds that each decoding sequence adds to a step.
        step_full_kv_s: batching: seconds that all of the KV cache adds to a step that decodes; a part of it adds less.
        prefill_base_s: batching: seconds that new prompts add to a step, however short they are.
        prefill_per_token_s: batching: seconds that each uncached prompt token adds to a step.
        speedup: batching: simulated seconds per real second.
        keep_alive_s: Close a connection after so many idle seconds; None: never.
        startup_delay_s: Answer 503 for so many seconds after the start.
        requests_per_minute: Maximum requests accepted; more are refused with 429 and Retry-After. They come back
            evenly, and as many as come back in a second may be sent at once. None: no limit.
        rate_limit_headers: Send with each answer what is left of `requests_per_minute` (``x-ratelimit-…-requests``).
        has_metrics: Whether there is ``/metrics``.
        max_recorded: Requests kept for inspection, the latest ones; 0 keeps none.
        seed: Changes every random choice: times, lengths, faults.
    """

    model: str | tuple[str, ...] = "sim"
    accept_any_model: bool = False
    api_key: str | None = field(default=None, repr=False)
    max_model_len: int = 32_768
    max_num_seqs: int = 256
    max_queue: int | None = None
    scheduler: Literal["slots", "batching"] = "slots"
    service_time_s: float | Callable[[Body], float] = 0.0
    service_time_sigma: float = 0.0
    answer_tokens: int | None = None
    answer_tokens_sigma: float = 0.0
    reasoning_field: str | None = None
    num_kv_blocks: int = 25_000
    prefix_caching: bool = True
    max_num_batched_tokens: int = 8_192
    step_base_s: float = 0.005_74
    step_per_seq_s: float = 0.0
    step_full_kv_s: float = 0.028_27
    prefill_base_s: float = 0.016_5
    prefill_per_token_s: float = 0.000_015_2
    speedup: float = 1.0
    keep_alive_s: float | None = None
    startup_delay_s: float = 0.0
    requests_per_minute: float | None = None
    rate_limit_headers: bool = False
    has_metrics: bool = True
    max_recorded: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "num_kv_blocks", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.scheduler not in ("slots", "batching"):
            raise ConfigError(f"scheduler is {self.scheduler!r}; it must be 'slots' or 'batching'.")
        if self.requests_per_minute is not None and self.requests_per_minute <= 0:
            raise ConfigError(f"requests_per_minute is {self.requests_per_minute}; it must be above 0.")
        if self.speedup <= 0:
            raise ConfigError(f"speedup is {self.speedup}; it must be above 0.")
        if self.scheduler == "batching" and self.num_kv_blocks * BLOCK_TOKENS < self.max_model_len:
            raise ConfigError(
                f"num_kv_blocks is {self.num_kv_blocks}: {self.num_kv_blocks * BLOCK_TOKENS} tokens cannot hold one "
                f"request of max_model_len={self.max_model_len}."
            )

    @property
    def models(self) -> tuple[str, ...]:
        """The names that the server answers to."""
        return (self.model,) if isinstance(self.model, str) else tuple(self.model)

    def to_dict(self) -> dict[str, Any]:
        """
        Return the settings as plain values, for another process.

        Raises:
            ConfigError: A setting is a function, which only a server in this process can call.
        """
        if callable(self.service_time_s):
            raise ConfigError("service_time_s as a function needs a server in this process (SimulatedServer).")
        return {item.name: getattr(self, item.name) for item in fields(self)}
