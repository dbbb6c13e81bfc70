"""
The one retry loop: which failed request is sent again, after which pause, for how long, and whose fault it is.

Direct users of a client and rows of a stage go through the same loop with another policy. What the server does to
other requests comes from a `Server`; the strategies for waiting and stopping are tenacity's. A request that succeeds
at once touches none of that.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from tenacity import RetryCallState, stop_after_attempt, stop_after_delay, wait_random_exponential
from tenacity.wait import wait_base

from nemo_llm_stage.client.clock import SYSTEM_CLOCK, Clock
from nemo_llm_stage.client.errors.foreign import as_request_error
from nemo_llm_stage.client.limit import Limit, Permit
from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import (
    ConnectionDroppedError,
    ConnectionFailedError,
    LLMStageError,
    RepeatedResponseError,
    RequestError,
    TransientError,
)

T = TypeVar("T")

MAX_BACKOFF_S = 60.0
"""The longest pause that we choose ourselves; a server's Retry-After may ask for a longer one."""

MAX_WAIT_S = 6 * 3600.0
"""The longest pause at all, whatever the server asks for."""

SHOWN_PAUSE_S = 5.0
"""A pause as long as this is shown to people even where the request has retries left."""

ALONGSIDE: AbstractAsyncContextManager[None] = nullcontext()
_VARYING = re.compile(r"[0-9a-fA-F-]{8,}|[0-9]+")
"""Request ids, times and counts within an error message."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """
    How often and for how long a failed request is sent again. Only transient failures are.

    A request is given up when its retries are used up *and* it is older than `give_up_after_s`.

    Attributes:
        max_retries: Sends after the first.
        base_delay: Seconds; the pause before retry k is uniform in ``[0, min(60, base_delay · 2^(k-1))]``, and once
            the retries are used up in ``[1, min(60, 4 · 2^j)]`` with j = 0, 1, …
        give_up_after_s: Seconds since the request's start; 0 counts retries only.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter", 2015 (full jitter); RFC 9110 §10.2.3.
    """

    max_retries: int = 3
    base_delay: float = 1.0
    give_up_after_s: float = 0.0

    def is_over(self, sends: Sends) -> bool:
        """Whether the last failure is final."""
        if not isinstance(sends.error, TransientError):
            return True
        is_old = stop_after_delay(self.give_up_after_s)
        if sends.num_refused and self.give_up_after_s > 0:  # it uses up no retry
            return is_old(sends)
        return (stop_after_attempt(self.max_retries + 1) & is_old)(sends)

    def pause_s(self, sends: Sends) -> float:
        """Return the seconds until the next send: never beyond what is left of `give_up_after_s`, while any is."""
        left_s = self.give_up_after_s - (sends.seconds_since_start or 0.0)
        return min(_wait_of(self)(sends), left_s if left_s > 0 else MAX_WAIT_S)


class Sends(RetryCallState):
    """
    The failed sends of one request, in the form that tenacity's strategies read.

    Attributes:
        error: The last failure, as one of our errors.
        kinds: The kind of each failure, oldest first.
        num_same: Failures at the end of `kinds` with the same words, ids and numbers aside.
        num_refused: Failures at the end of `kinds` without a connection.
        notes: What the `Server` remembers with this request.
    """

    error: RequestError

    def __init__(self, started_monotonic_s: float) -> None:
        super().__init__(cast("Any", None), None, (), {})
        self.start_time = started_monotonic_s
        self.attempt_number = 0
        self.kinds: tuple[str, ...] = ()
        self.signature = ""
        self.num_same = 0
        self.num_refused = 0
        self.notes: Any = None

    @property
    def goes_elsewhere(self) -> bool:
        """Whether another server takes the request at once."""
        return isinstance(self.error, TransientError) and self.error.goes_elsewhere

    def note(self, error: Exception, now_monotonic_s: float, *, is_gated: bool = False) -> None:
        """
        Add a failed send.

        A repeated response uses up no retry, nor does a failure after which another server takes the request, or a
        refused connection where requests wait while the server is down.
        """
        self.error = as_request_error(error)
        is_refused = isinstance(self.error, ConnectionFailedError)
        is_free = self.goes_elsewhere or (is_gated and is_refused) or isinstance(self.error, RepeatedResponseError)
        self.attempt_number += not is_free
        self.outcome_timestamp = now_monotonic_s
        self.kinds += (self.error.kind,)
        signature = f"{self.error.kind} {_VARYING.sub('#', str(self.error)[:300])}"
        self.num_same = self.num_same + 1 if signature == self.signature else 1
        self.signature = signature
        self.num_refused = self.num_refused + 1 if is_refused else 0


class Server(Protocol):
    """What all requests together tell of the server; `rows.health.Health` is the real one."""

    @property
    def is_down(self) -> bool:
        """Whether it refuses connections."""

    async def wait_until_up(self, give_up_at_monotonic_s: float) -> bool:
        """Return once the server may be up; True to the one request that finds out, or whose time is over."""

    def end_probe(self) -> None:
        """Let another request find out."""

    def alongside(self, sends: Sends) -> AbstractAsyncContextManager[Any]:
        """Return what to enter before a request is sent again; raises where it must not be."""

    def note_answer(self) -> None:
        """Remember an answer."""

    def note_failure(self, sends: Sends, num_in_flight: int, *, is_probe: bool) -> bool:
        """Remember a failed send; return whether the request is to blame, so that its failure is final."""

    def note_pause(self, sends: Sends, pause_s: float) -> None:
        """Remember, for people to see, that a request waits to be sent again."""


_ANOTHER_SEND = "asks_for_another_send"


def ask_for_another_send(error: Exception) -> None:
    """Have `send` send the request that failed with `error` again at once: the client has learned to send it better."""
    setattr(error, _ANOTHER_SEND, True)


async def send(
    request: Callable[[Permit], Awaitable[T]],
    limit: Limit,
    policy: RetryPolicy,
    *,
    clock: Clock = SYSTEM_CLOCK,
    server: Server | None = None,
    as_error: Callable[[Exception], RequestError] | None = None,
) -> tuple[T, tuple[str, ...]]:
    """
    Return what `request` returns, and the kinds of the failed sends before it. Holds a permit only while sending.

    Args:
        request: Makes one send under a permit.
        limit: Gives a permit for each send.
        policy: How often and for how long.
        clock: Time and sleep.
        server: Told of every outcome; None where no other request needs to know. While it is down, requests that may
            still wait do so without being sent.
        as_error: Makes one of our errors of what a send raised; None leaves it as it is.

    Raises:
        Exception: What the last send raised; a RequestError's `failures` hold the kinds of all of them.
        RunError: The server fails every request, so that no retry can help.
    """
    started_monotonic_s = clock.monotonic()
    sends: Sends | None = None
    permit: Permit | None = None
    gate = server if policy.give_up_after_s > 0 else None
    while True:
        permit = limit.permit(permit)
        to_enter = permit if sends is None or server is None else _both(server.alongside(sends), permit)
        give_up_at_s = started_monotonic_s + policy.give_up_after_s
        is_probe = await gate.wait_until_up(give_up_at_s) if gate is not None and gate.is_down else False
        try:
            async with to_enter:
                if gate is not None and gate.is_down and not is_probe:
                    limit.note_unsent()
                    continue  # the server went down while this request waited for its permit
                answer = await request(permit)
                if limit.allowance is not None:  # before the permit goes to the next
                    limit.allowance.note_answer(answer.usage if isinstance(answer, Completion) else None)
        except Exception as raised:
            if getattr(raised, _ANOTHER_SEND, False):
                continue
            error = raised if as_error is None or isinstance(raised, LLMStageError) else as_error(raised)
            sends = sends or Sends(started_monotonic_s)
            sends.note(error, clock.monotonic(), is_gated=gate is not None)
            is_to_blame = server is not None and server.note_failure(sends, limit.in_flight, is_probe=is_probe)
            if _is_final(error, sends, policy, is_to_blame=is_to_blame):
                if error is raised:
                    raise
                raise error from raised
        else:
            if server is not None:
                server.note_answer()
            return answer, () if sends is None else sends.kinds
        finally:
            if is_probe and gate is not None:
                gate.end_probe()
        if gate is None or not gate.is_down:
            await clock.sleep(_pause_s(sends, policy, server))


@asynccontextmanager
async def _both(
    outer: AbstractAsyncContextManager[Any], inner: AbstractAsyncContextManager[Any]
) -> AsyncIterator[None]:
    async with outer, inner:
        yield


def _is_final(error: Exception, sends: Sends, policy: RetryPolicy, *, is_to_blame: bool) -> bool:
    """Whether a failed request is not sent again; keeps the kinds of all its failures with the error."""
    if isinstance(error, RequestError):
        error.failures = sends.kinds
    elif isinstance(error, LLMStageError):  # wrong settings, or a broken run
        return True
    if policy.is_over(sends):
        return True
    if not is_to_blame or sends.attempt_number <= policy.max_retries:
        return False
    sends.error.args = (f"{sends.error} It failed {sends.num_same} times in this way while others were answered.",)
    return True


def _pause_s(sends: Sends, policy: RetryPolicy, server: Server | None) -> float:
    if sends.goes_elsewhere:
        return 0.0
    pause_s = policy.pause_s(sends)
    if server is not None and (sends.attempt_number > policy.max_retries or pause_s >= SHOWN_PAUSE_S):
        server.note_pause(sends, pause_s)
    return pause_s


@functools.lru_cache(maxsize=64)
def _wait_of(policy: RetryPolicy) -> wait_base:
    quick = wait_random_exponential(multiplier=policy.base_delay, max=MAX_BACKOFF_S)
    patient = wait_random_exponential(multiplier=4 / 2.0 ** min(policy.max_retries, 1000), min=1, max=MAX_BACKOFF_S)
    return _WaitAsAsked(_WaitPatiently(quick, patient, policy.max_retries), min(1.0, policy.base_delay))


class _WaitPatiently(wait_base):
    """One strategy while retries are left, another after them."""

    def __init__(self, quick: wait_base, patient: wait_base, max_retries: int) -> None:
        self._quick, self._patient, self._max_retries = quick, patient, max_retries

    def __call__(self, state: RetryCallState) -> float:
        return (self._quick if state.attempt_number <= self._max_retries else self._patient)(state)


class _WaitAsAsked(wait_base):
    """
    The server's Retry-After, never undercut; another strategy where it sent none.

    Up to `jitter_s` comes on top, so that requests do not come back all at once. A dropped connection is retried at
    once the first time: usually the server had closed an idle one.
    """

    def __init__(self, otherwise: wait_base, jitter_s: float) -> None:
        self._otherwise, self._jitter_s = otherwise, jitter_s

    def __call__(self, state: RetryCallState) -> float:
        error = state.error if isinstance(state, Sends) else None
        if isinstance(error, TransientError) and error.retry_after_s is not None:
            return error.retry_after_s + random.uniform(0, self._jitter_s)  # noqa: S311 - jitter, not a secret
        if isinstance(error, ConnectionDroppedError) and state.attempt_number <= 1:
            return 0.0
        return self._otherwise(state)
