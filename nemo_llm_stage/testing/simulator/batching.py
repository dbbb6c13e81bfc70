"""
Continuous batching: the step loop, KV cache and preemption of a GPU engine, in simulated time.

Each step computes one token of every decoding sequence and, within `max_num_batched_tokens`, pieces of new prompts. A
step that decodes takes ``step_base_s + step_per_seq_s · sequences``, and up to `step_full_kv_s` more, the more of the
KV cache they attend to; one with new prompts takes ``prefill_base_s + prefill_per_token_s · tokens`` more, and a little
that grows with their square. The n choices of a request count as one sequence. Knows jobs; nothing of HTTP.

Source: the shapes are those of the default timing model of NVIDIA Dynamo's engine emulator (lib/mocker, 1.6).
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from nemo_llm_stage.testing.simulator.answers import CHARS_PER_TOKEN
from nemo_llm_stage.testing.simulator.config import BLOCK_TOKENS, ServerConfig
from nemo_llm_stage.testing.simulator.slots import Engine, Job
from nemo_llm_stage.testing.simulator.stats import StatsRecorder

_KV_CONCAVITY = 0.91
_PREFILL_PER_SQUARE = 2.77e-5
"""Of `prefill_per_token_s`, for each token, for each other token."""

_MAX_STEPS_AT_ONCE = 64  # so that connections are heard even where the steps cannot be simulated in time


class BlockPool:
    """
    The KV cache in blocks of 16 tokens. Blocks of known content stay findable until their room is needed.

    Args:
        num_blocks: All of them.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._num_empty = num_blocks
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_used(self) -> int:
        """Blocks that some sequence needs."""
        return self.num_blocks - self._num_empty - len(self._idle)

    def acquire(self, keys: list[int], num_blocks: int) -> int | None:
        """
        Take `num_blocks` blocks; the first ones hold the content `keys`.

        Returns:
            How many of the first blocks were there already; None if there is no room, and nothing is taken.
        """
        num_hits = num_idle_hits = 0
        for key in keys:
            if key not in self._users:
                if key not in self._idle:
                    break
                num_idle_hits += 1
            num_hits += 1
        if num_blocks - num_hits > self._num_empty + len(self._idle) - num_idle_hits:
            return None
        for key in keys:
            if key in self._idle:
                del self._idle[key]
                self._num_empty += 1
            self._users[key] = self._users.get(key, 0) + 1
            self._num_empty -= self._users[key] == 1
        self._num_empty -= num_blocks - len(keys)
        self._make_room()
        return num_hits

    def extend(self, num_blocks: int) -> bool:
        """Take more blocks, of no known content; return False and take none if there is no room."""
        if num_blocks > self._num_empty + len(self._idle):
            return False
        self._num_empty -= num_blocks
        self._make_room()
        return True

    def release(self, keys: list[int], num_blocks: int) -> None:
        """Give back what was taken: the blocks of `keys`, and the rest of `num_blocks` in all."""
        self._num_empty += num_blocks - len(keys)
        for key in reversed(keys):  # the end of a prompt is forgotten before its beginning
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                self._idle[key] = None

    def _make_room(self) -> None:
        while self._num_empty < 0:
            self._idle.popitem(last=False)
            self._num_empty += 1


@dataclass(eq=False, slots=True)
class _Sequence:
    """A job in the KV cache. `to_prefill` tokens are still to be computed before the next token comes."""

    job: Job
    keys: list[int]
    num_blocks: int = 0
    to_prefill: int = 0
    num_generated: int = 0
    admitted_s: float = 0.0

    @property
    def num_tokens(self) -> int:
        return self.job.prompt_tokens + self.num_generated


class BatchingEngine(Engine):
    """Serves jobs in steps, as vLLM's scheduler does: decode first, then prompts, the newest gives way."""

    def __init__(self, config: ServerConfig, stats: StatsRecorder) -> None:
        super().__init__(config.max_num_seqs, config.max_queue, stats)
        self._config = config
        self._pool = BlockPool(config.num_kv_blocks)
        self._sequences: dict[Job, _Sequence] = {}
        self._running: list[_Sequence] = []
        self._producing: list[_Sequence] = []
        self._step_ends_s: float | None = None
        self._has_preempted = False

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV cache in use, 0 to 1."""
        return self._pool.num_used / self._pool.num_blocks

    def cancel(self, job: Job) -> int:
        """Take a job out; its blocks are free at once."""
        sequence = self._sequences.pop(job, None)
        if sequence is None or sequence not in self._running:
            self._waiting.remove(job)
        else:
            self._leave(sequence)
        return 0 if sequence is None else sequence.num_generated

    def _serve_waiting(self) -> None:
        if self._step_ends_s is None:
            self._begin_step(time.monotonic())
            self._wait_for_step()

    def _begin_step(self, now_s: float) -> None:
        duration_s = self._plan_step()
        if not self._running:
            self._step_ends_s = None
            return
        self._step_ends_s = now_s + duration_s / self._config.speedup

    def _wait_for_step(self) -> None:
        if self._step_ends_s is not None:
            delay_s = max(0.0, self._step_ends_s - time.monotonic())
            asyncio.get_running_loop().call_later(delay_s, self._run_steps)

    def _run_steps(self) -> None:
        """End the step that is due, and all that are due by then: real timers are too coarse for a fast simulation."""
        for _ in range(_MAX_STEPS_AT_ONCE):
            ends_s = self._step_ends_s
            if ends_s is None or ends_s > time.monotonic():
                break
            self._end_step()
            self._begin_step(ends_s)
        self._wait_for_step()

    def _plan_step(self) -> float:
        config = self._config
        budget = config.max_num_batched_tokens
        num_prefilled = num_decoding = num_attended = 0
        self._producing = []
        self._has_preempted = False
        index = 0
        while index < len(self._running) and budget > 0:
            sequence = self._running[index]
            index += 1
            if sequence.to_prefill:
                tokens = self._prefill(sequence, budget)
                num_prefilled += tokens
                budget -= tokens
            elif self._grow(sequence):
                self._producing.append(sequence)
                num_decoding += 1
                num_attended += sequence.num_tokens
                budget -= 1
        while budget > 0 and self._waiting and len(self._running) < self.max_num_seqs and not self._has_preempted:
            admitted = self._admit(self._waiting[0])
            if admitted is None:
                break
            tokens = self._prefill(admitted, budget)
            num_prefilled += tokens
            budget -= tokens
        prefilling_s = self._prefilling_s(num_prefilled)
        self.stats.seen.prefill_s += prefilling_s
        return self._decoding_s(num_decoding, num_attended) + prefilling_s

    def _decoding_s(self, num_sequences: int, num_attended: int) -> float:
        if not num_sequences:
            return 0.0
        config = self._config
        share = min(1.0, num_attended / (config.num_kv_blocks * BLOCK_TOKENS))
        full = config.step_full_kv_s * ((1 + _KV_CONCAVITY) * share - _KV_CONCAVITY * share * share)
        return config.step_base_s + config.step_per_seq_s * num_sequences + full

    def _prefilling_s(self, num_tokens: int) -> float:
        if not num_tokens:
            return 0.0
        config = self._config
        per_token_s = config.prefill_per_token_s * (1 + _PREFILL_PER_SQUARE * num_tokens)
        return config.prefill_base_s + per_token_s * num_tokens

    def _prefill(self, sequence: _Sequence, budget: int) -> int:
        tokens = min(budget, sequence.to_prefill)
        sequence.to_prefill -= tokens
        if not sequence.to_prefill:
            self._producing.append(sequence)
        return tokens

    def _admit(self, job: Job) -> _Sequence | None:
        sequence = self._sequences.get(job)
        if sequence is None:
            keys = block_keys(job.prompt, job.prompt_tokens) if self._config.prefix_caching else []
            sequence = self._sequences[job] = _Sequence(job, keys)
        num_blocks = -(-(sequence.num_tokens + 1) // BLOCK_TOKENS)
        num_hits = self._pool.acquire(sequence.keys, num_blocks)
        if num_hits is None:
            return None
        self._waiting.popleft()
        sequence.num_blocks = num_blocks
        sequence.to_prefill = sequence.num_tokens - num_hits * BLOCK_TOKENS
        sequence.admitted_s = time.monotonic()
        if job.started_s is None:
            job.started_s = sequence.admitted_s
            job.cached_tokens = num_hits * BLOCK_TOKENS
        self._running.append(sequence)
        self.stats.started(sequence.admitted_s)
        return sequence

    def _grow(self, sequence: _Sequence) -> bool:
        """Make room for the next token; the newest sequences give way. Return False if this one had to."""
        while sequence.num_tokens + 1 > sequence.num_blocks * BLOCK_TOKENS:
            if self._pool.extend(1):
                sequence.num_blocks += 1
                continue
            newest = self._running[-1]
            self._leave(newest)
            self._waiting.appendleft(newest.job)
            self._has_preempted = True
            self.stats.seen.num_preemptions += 1
            if newest is sequence:
                return False
        return True

    def _leave(self, sequence: _Sequence) -> None:
        self._running.remove(sequence)
        self._pool.release(sequence.keys, sequence.num_blocks)
        sequence.num_blocks = 0
        self.stats.ended(sequence.admitted_s, time.monotonic())

    def _end_step(self) -> None:
        for sequence in self._producing:
            job = sequence.job
            if job not in self._sequences:  # cancelled meanwhile
                continue
            sequence.num_generated += 1
            if sequence.num_generated == 1:
                job.on_start()
            if sequence.num_generated >= job.output_tokens:
                del self._sequences[job]
                self._leave(sequence)
                job.on_finish()


def block_keys(prompt: str, num_tokens: int) -> list[int]:
    """
    Return a key for each block of the prompt but its last; a key stands for all the text up to its block's end.

    The last token is always computed, so its block is never taken from the cache.
    """
    size = BLOCK_TOKENS * CHARS_PER_TOKEN
    keys = []
    key = 0
    for start in range(0, (num_tokens - 1) // BLOCK_TOKENS * size, size):
        key = hash((key, prompt[start : start + size]))
        keys.append(key)
    return keys
