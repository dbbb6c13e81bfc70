"""
A model of inference servers and of a client that sends as many requests as its limit allows, in virtual time.

A server decodes step by step: a step takes ``0.0065 + 0.000105 · running`` seconds and makes one token for each running
sequence, as an 8B model on one H100 does. Where its KV cache is full, the newest sequence is thrown out and computed
again. Everything follows from the seed.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from nemo_llm_stage.client.governor.governor import TICK_S, Governor
from nemo_llm_stage.client.governor.metrics import ServerLoad
from nemo_llm_stage.client.governor.signals import Signals

STEP_S, STEP_PER_SEQUENCE_S, PREFILL_TOKEN_S = 0.0065, 0.000_105, 0.000_03


@dataclass(eq=False)
class Request:
    """One request; `is_mine` tells the client's from those of another one."""

    prompt_tokens: int
    output_tokens: int
    sent_s: float
    is_mine: bool = True
    ends_at_step: int = 0
    started_at_step: int = 0
    tokens_done: int = 0
    is_running: bool = False


@dataclass
class Server:
    """Continuous batching: `slots` sequences at once, as long as the KV cache holds them."""

    slots: int = 256
    kv_tokens: int = 10**9
    now_s: float = 0.0
    step: int = 0
    kv_used: int = 0
    num_preemptions: int = 0
    num_tokens: int = 0
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    ends: list[tuple[int, int, Request]] = field(default_factory=list)
    number: int = 0

    def load(self, *, tells_kv_size: bool = True) -> ServerLoad:
        """What its metrics say."""
        return ServerLoad(
            "vllm",
            len(self.running),
            len(self.waiting),
            kv_usage=min(1.0, self.kv_used / self.kv_tokens),
            kv_tokens=self.kv_tokens if tells_kv_size else None,
            num_preemptions=self.num_preemptions,
            output_tokens=self.num_tokens,
        )

    def run_until(self, until_s: float, on_done: Callable[[Request, float], None]) -> None:
        """Run steps until `until_s`."""
        while self.now_s < until_s:
            num_prefilled = self._admit()
            if not self.running:
                self.now_s = until_s
                return
            self.step += 1
            self.now_s += STEP_S + STEP_PER_SEQUENCE_S * len(self.running) + PREFILL_TOKEN_S * num_prefilled
            self.kv_used += len(self.running)
            self.num_tokens += len(self.running)
            while self.kv_used > self.kv_tokens and len(self.running) > 1:
                self._preempt()
            while self.ends and self.ends[0][0] <= self.step:
                _, _, request = heapq.heappop(self.ends)
                if request.is_running and request.ends_at_step == self.step:
                    self._leave(request)
                    on_done(request, self.now_s)

    def _admit(self) -> int:
        num_prefilled = 0
        while self.waiting and len(self.running) < self.slots and num_prefilled < 8192:
            request = self.waiting[0]
            held = request.prompt_tokens + request.tokens_done
            if self.kv_used + held > self.kv_tokens and self.running:
                break
            self.waiting.popleft()
            self.kv_used += held
            num_prefilled += held
            request.is_running, request.started_at_step = True, self.step
            request.ends_at_step = self.step + request.output_tokens - request.tokens_done
            self.running.append(request)
            self.number += 1
            heapq.heappush(self.ends, (request.ends_at_step, self.number, request))
        return num_prefilled

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        request.is_running = False
        request.tokens_done += self.step - request.started_at_step
        self.kv_used -= request.prompt_tokens + request.tokens_done

    def _preempt(self) -> None:
        request = self.running[-1]
        self._leave(request)
        self.waiting.appendleft(request)
        self.num_preemptions += 1


@dataclass
class Outcome:
    """What a run came to: tokens of the client's answers in each second, and the limit then."""

    tokens: list[float] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    num_preemptions: int = 0

    def rate(self, from_s: int, to_s: int) -> float:
        """Tokens per second in that time."""
        return sum(self.tokens[from_s:to_s]) / (to_s - from_s)


@dataclass
class Load:
    """
    A client and its servers.

    Args:
        servers: Asked in turn.
        shows: Whether there are metrics: "none", "one" of the servers in turn, or those of the only server.
        rows_per_s: Rows that can be sent; None for any number.
        others: Second → requests that another client keeps in flight at the first server from then on.
        prompt_tokens: The same for all requests, or at a second.
    """

    servers: list[Server]
    shows: str = "all"
    tells_kv_size: bool = True
    rows_per_s: float | None = None
    others: dict[int, int] = field(default_factory=dict)
    prompt_tokens: Callable[[float], int] = lambda _: 200
    output_tokens: int = 200
    sigma: float = 0.5
    seed: int = 1

    def run(self, governor: Governor | int, seconds: int) -> Outcome:
        """Run for so long with a governor, or with a fixed limit."""
        return _Run(self, governor).run(seconds)


class _Run:
    def __init__(self, load: Load, governor: Governor | int) -> None:
        self.load, self.governor = load, governor
        self.rng = random.Random(load.seed)
        self.outcome = Outcome()
        self.in_flight = self.peak = self.number = self.num_polls = self.num_others = 0
        self.tokens_in_flight = self.credit = self.tokens = 0.0
        self.is_token_bound = False

    @property
    def limit(self) -> int:
        return self.governor if isinstance(self.governor, int) else self.governor.limit

    def run(self, seconds: int) -> Outcome:
        for second in range(seconds):
            self.credit += self.load.rows_per_s or float("inf")
            self.num_others = self.load.others.get(second, self.num_others)
            self.tokens, self.peak = 0.0, self.in_flight
            for part in range(1, 21):
                self.send(second + (part - 1) / 20)
                for server in self.load.servers:
                    server.run_until(second + part / 20, self.on_done)
            self.outcome.tokens.append(self.tokens)
            self.tick(second + 1)
            self.outcome.limits.append(self.limit)
        self.outcome.num_preemptions = sum(server.num_preemptions for server in self.load.servers)
        return self.outcome

    def tick(self, now_s: float) -> None:
        if isinstance(self.governor, int) or now_s % TICK_S:
            return
        load = None
        if self.load.shows != "none":
            server = self.load.servers[self.num_polls % len(self.load.servers)]
            self.num_polls += 1
            load = server.load(tells_kv_size=self.load.tells_kv_size)
        signals = Signals(
            now_s, self.in_flight, self.peak, self.tokens_in_flight, int(self.credit >= 1), self.is_token_bound, load
        )
        self.governor.tick(signals)

    def send(self, now_s: float) -> None:
        max_tokens = None if isinstance(self.governor, int) else self.governor.max_tokens
        self.is_token_bound = False
        while self.in_flight < self.limit and self.credit >= 1:
            if max_tokens is not None and self.in_flight and self.tokens_in_flight >= max_tokens:
                self.is_token_bound = True
                break
            request = self.make(now_s)
            held = self.held(request)
            self.credit -= 1
            self.in_flight += 1
            self.tokens_in_flight += held
            self.peak = max(self.peak, self.in_flight)
            self.load.servers[self.number % len(self.load.servers)].waiting.append(request)
            self.number += 1
        first = self.load.servers[0]
        num_theirs = sum(not request.is_mine for request in [*first.running, *first.waiting])
        for _ in range(self.num_others - num_theirs):
            request = self.make(now_s)
            request.is_mine = False
            first.waiting.append(request)

    def held(self, request: Request) -> float:
        return request.prompt_tokens + 0.5 * self.load.output_tokens

    def make(self, now_s: float) -> Request:
        num = self.load.output_tokens * self.rng.lognormvariate(0, self.load.sigma)
        return Request(self.load.prompt_tokens(now_s), max(1, round(num)), now_s)

    def on_done(self, request: Request, now_s: float) -> None:
        if not request.is_mine:
            return
        self.in_flight -= 1
        self.tokens_in_flight -= self.held(request)
        self.tokens += request.output_tokens
        if not isinstance(self.governor, int):
            tokens = request.output_tokens
            self.governor.note_answer(request.sent_s, now_s - request.sent_s, tokens, tokens)
