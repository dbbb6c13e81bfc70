"""
The limits of requests in flight, as they were found, and what held the work back, in words. Pure.

Knows how servers stand; knows nothing of how a limit is found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nemo_llm_stage.client.endpoint_status import EndpointStatus

MODES = {
    "metrics": "by the server's metrics",
    "throughput": "by the work per second",
    "refusals": "by the server's refusals",
    "fixed": "as set",
}
HOLDERS = {
    "server": "the server, which is full",
    "kv cache": "the server's KV cache, which is full",
    "rate limit": "the server's rate limit",
    "client cpu": "this process's CPU",
    "open files": "this process's limit of open files",
    "input": "too few rows to send",
}
SHORT = {"server": "full", "kv cache": "KV cache full", "client cpu": "no CPU here", "open files": "no files here"}
"""Of a server that is well, for narrow places."""

MIN_SHARE = 0.1
"""What held the work back for a smaller part of the time is left out."""


def found_limit(endpoints: Sequence[EndpointStatus]) -> tuple[int, str] | None:
    """Return the sum of the limits in the end, and how they were found; None where none has moved by itself."""
    moving = [endpoint for endpoint in endpoints if endpoint.mode != "fixed" and endpoint.limit is not None]
    if not moving:
        return None
    modes = Counter(endpoint.mode for endpoint in moving)
    words = [f"at most, {' and '.join(MODES.get(mode, mode) for mode, _ in modes.most_common())}"]
    if len(moving) == 1 and moving[0].moved and moving[0].moved != "the start":
        words.append(f"last moved because {moving[0].moved}")
    held = held_back(moving)
    if held:
        words.append(f"held back by {held}")
    return sum(endpoint.limit or 0 for endpoint in moving), "; ".join(words)


def held_back(endpoints: Sequence[EndpointStatus]) -> str:
    """Return what held the work back and for which part of the time; nothing where that is not known."""
    seconds: Counter[str] = Counter()
    for endpoint in endpoints:
        seconds.update(endpoint.held_s)
    total = sum(seconds.values())
    parts = [
        f"{HOLDERS[name]} ({num / total:.0%} of the time)"
        for name, num in seconds.most_common()
        if name in HOLDERS and num >= MIN_SHARE * total
    ]
    return ", ".join(parts)


def held_back_now(bottleneck: object, reason: object) -> str:
    """Return what holds the work back now, and why; nothing where that is not known."""
    holder = HOLDERS.get(str(bottleneck))
    return "" if holder is None else f"{holder}: {reason}" if reason else holder
