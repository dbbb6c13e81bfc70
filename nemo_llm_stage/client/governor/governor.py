"""
How many requests may be in flight at one server: signals in; a limit, and the reason for it, out.

Follows the server's metrics where they can be trusted, else its refusals where it refuses, else the work done per
second. Has no clock, no connection and no task of its own: whoever owns it calls `tick` about once a second. Pure.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass, replace

from nemo_llm_stage.client.governor.by_queue import FULL_KV, ByQueue
from nemo_llm_stage.client.governor.by_throughput import ByThroughput
from nemo_llm_stage.client.governor.metrics import ServerLoad
from nemo_llm_stage.client.governor.signals import BUSY_SHARE, SATURATED_SHARE, Bottleneck, LimitStatus, Mode, Signals
from nemo_llm_stage.client.governor.trust import Trust

logger = logging.getLogger(__name__)

START_LIMIT = 64
"""The first limit, and what is planned with before: how many rows to read ahead, how many workers to start."""

MAX_LIMIT = 4096
"""More connections than this are a matter of several clients."""

SHARED_LIMIT = 4 * START_LIMIT
"""
Most of all workers together at one server that tells nothing of its load: a worker that takes the others' part of its
queue gets more work done, which proves nothing. In a simulation of four workers one of them had driven 608 to 1,120.
"""

TICK_S = 1.0
"""Seconds between two ticks."""

STALE_S = 5 * TICK_S
"""A reading of the metrics counts for so long."""

CUT = 0.8
HELD = 1.25
"""A refusal leaves a limit of so many times the requests that the server has not refused, or more."""

COOLDOWN_S = 15.0
"""After a refusal the limit does not grow for so long, or for as long as the server asks. Source: inspect_ai."""

ROUND_S, GROWTH = 5.0, 1.05
"""After refusals the limit grows by this factor in each round without another one."""

KV_SLACK = 1.1
"""Expected tokens in flight per token of the KV cache: expectations are rough, and a small queue should wait."""


@dataclass(frozen=True, slots=True)
class GovernorSettings:
    """
    Bounds of a limit.

    Attributes:
        start: The first limit.
        largest: Never beyond.
        share: This worker's part of the server, where other workers of the same job ask it too.
    """

    start: int = START_LIMIT
    largest: int = MAX_LIMIT
    share: float = 1.0

    @property
    def largest_by_throughput(self) -> float:
        """Likewise, where only the work per second tells."""
        return self.largest if self.share == 1 else min(self.largest, SHARED_LIMIT * self.share)


class Governor:
    """
    Finds the limit of one server.

    A lower limit takes effect as requests come back; nothing is cancelled. Where there are not enough rows to reach the
    limit, it stays as it is.

    Args:
        name: Of the server, for logs.
        settings: Bounds.
    """

    def __init__(self, name: str = "", settings: GovernorSettings | None = None) -> None:
        self._name = name
        self._settings = settings or GovernorSettings()
        self._limit = float(min(self._settings.start, self._settings.largest))
        self._limit_before = self._limit
        self._start()
        self._trust = Trust()
        self._load: ServerLoad | None = None
        self._load_at_s = -math.inf
        self._cut_at_s = self._grown_at_s = self._calm_at_s = -math.inf
        self._kv_slack = KV_SLACK
        self._max_tokens: float | None = None
        self._is_pinned = self._is_told = False
        self._num_answers = 0
        self._moved = "the start"
        self._held_s: Counter[str] = Counter()
        self._status = LimitStatus(self.limit, "throughput", "the start", "unknown")

    def _start(self) -> None:
        self._by_queue = ByQueue(self._settings.largest, self._settings.share)
        self._by_throughput = ByThroughput(self._settings.largest_by_throughput)

    @property
    def limit(self) -> int:
        """Most requests in flight; at least 1."""
        return max(1, round(self._limit))

    @property
    def max_tokens(self) -> float | None:
        """Most expected tokens in flight; None for no such limit."""
        return self._max_tokens

    @property
    def status(self) -> LimitStatus:
        """How the limit stands."""
        speed = None if self._load is None else self._load.prompt_speed
        return replace(self._status, moved=self._moved, held_s=dict(self._held_s), prompt_speed=speed)

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that the server has in its prefix cache, as far as it tells."""
        return (self._load.hit_rate or 0.0) if self._load is not None else 0.0

    def note_answer(self, sent_at_s: float, latency_s: float, tokens: float, output_tokens: float) -> None:
        """
        Take note of an answer.

        Args:
            sent_at_s: When its request was sent.
            latency_s: From sending on.
            tokens: Its work: those of the answer, and a part of the prompt's.
            output_tokens: Those of the answer.
        """
        self._num_answers += 1
        if not self._is_told:
            self._by_throughput.note_answer(sent_at_s, latency_s, tokens, output_tokens)

    def note_refusal(
        self,
        sent_at_s: float,
        now_s: float,
        num_held: int,
        retry_after_s: float | None = None,
        *,
        is_full: bool = False,
    ) -> bool:
        """
        Take note that the server refused a request because it has too many, and lower the limit once an episode.

        Args:
            sent_at_s: When the request was sent. One that was not sent after the last cut says nothing new.
            now_s: The time now.
            num_held: Other requests in flight: the server has not refused them.
            retry_after_s: Seconds that the server asked for.
            is_full: Whether its queue is full, so that what it holds is what it takes, and not a rate.

        Returns:
            Whether the limit was lowered.
        """
        if self._is_pinned:
            return False
        if now_s >= self._calm_at_s:
            self._limit_before = self._limit
        self._calm_at_s = max(self._calm_at_s, now_s + max(COOLDOWN_S, retry_after_s or 0.0))
        is_new = sent_at_s > self._cut_at_s
        if not is_new and not (is_full and num_held < self._limit):
            return False
        if is_new:
            self._cut_at_s = now_s
            self._by_queue.note_cut(is_full=is_full)
            self._by_throughput.reset()
        if is_full:
            self._set(min(self._limit, num_held), "refusals", "the server's queue is full", "server")
            return True
        limit = min(self._limit, max(CUT * self._limit, HELD * num_held + 1))
        self._set(limit, "refusals", "the server refused a request because it has too many", "rate limit")
        return True

    def forget_refusals(self) -> None:
        """Begin again with the limit that was there before the last refusals: no limit would have spared them."""
        if not self._is_pinned:
            self._calm_at_s = -math.inf
            self._start()
            reason = "requests are refused however few are sent"
            self._set(max(self._limit, self._limit_before), "throughput", reason, "unknown")

    def pin(self, limit: int) -> None:
        """Fix the limit."""
        self._is_pinned, self._max_tokens = True, None
        self._set(limit, "fixed", "a number was set", "unknown")

    def tick(self, signals: Signals) -> None:
        """Move the limit, if the signals say so and it is not pinned. Called about once a second."""
        if self._is_pinned:
            return
        if signals.load is not None:
            self._load, self._load_at_s = signals.load, signals.now_s
            self._trust.note(signals.load, signals.in_flight)
        is_saturated = signals.peak_in_flight >= SATURATED_SHARE * self.limit and not signals.is_token_bound
        is_busy = signals.client_busy >= BUSY_SHARE or signals.is_out_of_files
        is_calm = signals.now_s >= self._calm_at_s
        may_grow = is_saturated and not is_busy and is_calm
        load = self._load if signals.now_s - self._load_at_s <= STALE_S else None
        self._is_told = load is not None and load.is_queue and self._trust.is_trusted
        if load is not None and self._is_told:
            self._tick_by_queue(signals, load, may_grow=may_grow)
        elif not is_calm or self._calm_at_s > -math.inf:
            self._tick_by_refusals(signals, may_grow=may_grow)
        else:
            move = self._by_throughput.next(self._limit, signals, may_grow=may_grow)
            self._set(move.limit, "throughput", self._trust.reason or move.reason, move.bottleneck)
        if signals.is_out_of_files:
            self._name_bottleneck("open files", "this process may not open more connections; see `ulimit -n`")
        elif is_busy:
            self._name_bottleneck("client cpu", "this process has no CPU time left to send more")
        elif signals.is_token_bound:
            self._name_bottleneck("kv cache", f"{self._max_tokens or 0:,.0f} expected tokens are in flight")
        elif not is_saturated and not signals.num_waiting:
            self._name_bottleneck("input", "there are not enough rows to send")
        self._held_s[self._status.bottleneck] += 1

    def _tick_by_queue(self, signals: Signals, load: ServerLoad, *, may_grow: bool) -> None:
        if signals.load is None:
            return
        move = self._by_queue.next(self._limit, signals, load, self._num_answers, may_grow=may_grow)
        self._num_answers = 0
        most = math.inf if load.max_running is None else 1.1 * load.max_running + 4
        limit = min(move.limit, max(most, GROWTH * self._limit))  # more than `most` where more run in spite of it
        self._limit_tokens(signals, load, is_full=move.bottleneck == "kv cache" and limit < self._limit)
        self._set(limit, "metrics", move.reason, move.bottleneck)

    def _tick_by_refusals(self, signals: Signals, *, may_grow: bool) -> None:
        if may_grow and signals.now_s - max(self._grown_at_s, self._cut_at_s) >= ROUND_S:
            self._grown_at_s = signals.now_s
            limit = min(self._settings.largest, self._limit * GROWTH + 1)
            self._set(limit, "refusals", "no request was refused for a while", "rate limit")

    def _limit_tokens(self, signals: Signals, load: ServerLoad, *, is_full: bool) -> None:
        """Bound the tokens in flight by the KV cache, which others may use too."""
        if load.kv_tokens is None and not is_full and self._max_tokens is None:
            return
        if is_full and load.kv_usage is not None:
            self._kv_slack = max(0.5, 0.98 * self._kv_slack)
        elif signals.is_token_bound and (load.kv_usage or 1.0) < FULL_KV and load.waiting < 1:  # less than expected
            self._kv_slack = min(4.0, (1.05 if (load.kv_usage or 1.0) < CUT else 1.01) * self._kv_slack)
        seen = max(1.0, signals.in_flight, load.running + load.waiting)
        if load.kv_tokens is not None:
            self._max_tokens = self._kv_slack * load.kv_tokens * signals.in_flight / seen if signals.in_flight else None
        elif is_full:
            self._max_tokens = max(1.0, 0.98 * signals.tokens_in_flight)
        elif self._max_tokens is not None and signals.is_token_bound and load.waiting < 1:
            self._max_tokens *= 1.02

    def _set(self, limit: float, mode: Mode, reason: str, bottleneck: Bottleneck) -> None:
        before = self.limit
        self._limit = max(1.0, min(self._settings.largest, limit))
        if self.limit != before:
            self._moved = reason
            logger.debug("%s: %d in flight after %d: %s", self._name, self.limit, before, reason)
        self._status = LimitStatus(self.limit, mode, reason, bottleneck, self._max_tokens)

    def _name_bottleneck(self, bottleneck: Bottleneck, reason: str) -> None:
        status = self._status
        self._status = LimitStatus(status.limit, status.mode, reason, bottleneck, status.max_tokens)
