"""
When a failed request is sent again.

One waiting rule, as a function and as a tenacity strategy. Which failures are sent again is `errors.foreign`'s.
"""

from __future__ import annotations

import random

from tenacity import RetryCallState

from nemo_llm_stage.client.errors.foreign import as_request_error
from nemo_llm_stage.errors import ConnectionDroppedError, RequestError, TransientError

MAX_BACKOFF_S = 60.0
"""The longest wait that we choose ourselves; a server's Retry-After is obeyed beyond it."""


def backoff_s(retry: int, *, base_delay: float, error: RequestError | None = None) -> float:
    """
    Seconds to wait before retry number `retry` (1 is the first).

    Full jitter: ``U(0, min(60, base_delay · 2^(retry-1)))``; a server's Retry-After is never undercut and gets up to
    one ``base_delay`` (at most a second) of jitter on top, so that rows do not come back all at once. A dropped
    connection is asked again at once the first time: mostly the server had closed an idle one.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter", 2015; RFC 9110 §10.2.3 (Retry-After).
    """
    if isinstance(error, TransientError) and error.retry_after_s is not None:
        return error.retry_after_s + random.uniform(0, min(1.0, base_delay))  # noqa: S311 - jitter, not a secret
    if isinstance(error, ConnectionDroppedError) and retry == 1:
        return 0.0
    ceiling = min(MAX_BACKOFF_S, base_delay * 2.0 ** min(retry - 1, 60))
    return random.uniform(0, ceiling)  # noqa: S311 - jitter, not a secret


class WaitBackoff:
    """`backoff_s` as a tenacity wait strategy."""

    def __init__(self, base_delay: float) -> None:
        self._base_delay = base_delay

    def __call__(self, state: RetryCallState) -> float:
        """Seconds to sleep after the attempt that `state` tells of."""
        error = state.outcome.exception() if state.outcome else None
        request_error = as_request_error(error) if error else None
        return backoff_s(state.attempt_number, base_delay=self._base_delay, error=request_error)
