"""
Which server answered how much, and which one is far worse than the others.

Knows what each server did; knows nothing of how requests are divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich import box
from rich.table import Table

from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.report.console import shown

MUCH_SLOWER = 5.0
MUCH_WORSE = 10.0
"""A server that takes 5 times as long as the others, or fails 10 times as often, is named."""

MIN_ANSWERS = 10
MIN_FAILURES = 10
"""Fewer tell nothing."""

MAX_SERVERS_SHOWN = 20


def servers(endpoints: Sequence[EndpointStatus]) -> Table | None:
    """Return what each server did, those that stand out first; None where there is only one."""
    if len(endpoints) < 2:
        return None
    notes = {endpoint.url: note_on(endpoint, endpoints) for endpoint in endpoints}
    table = Table(box=box.SIMPLE, title="servers", title_justify="left", pad_edge=False)
    for column in ("answered", "failed", "half within", "99 % within"):
        table.add_column(column, justify="right")
    table.add_column("server", overflow="fold")
    table.add_column("", overflow="fold")
    ordered = sorted(endpoints, key=lambda endpoint: (not notes[endpoint.url], -endpoint.num_answered))
    for endpoint in ordered[:MAX_SERVERS_SHOWN]:
        table.add_row(
            f"{endpoint.num_answered:,}",
            f"{endpoint.num_failed:,}",
            _seconds(endpoint.p50_s),
            _seconds(endpoint.p99_s),
            shown(endpoint.url),
            shown(notes[endpoint.url], "red"),
        )
    if len(ordered) > MAX_SERVERS_SHOWN:
        table.caption = f"and {len(ordered) - MAX_SERVERS_SHOWN:,} more"
    return table


def note_on(endpoint: EndpointStatus, endpoints: Sequence[EndpointStatus]) -> str:
    """Return in which way a server is far worse than the others, or that it rests; nothing where it is not."""
    others = [other for other in endpoints if other.url != endpoint.url]
    notes = []
    usual_s = median([other.p50_s for other in others if other.p50_s is not None] or [0.0])
    if endpoint.num_answered >= MIN_ANSWERS and endpoint.p50_s and 0 < MUCH_SLOWER * usual_s <= endpoint.p50_s:
        notes.append(f"{endpoint.p50_s / usual_s:.0f} times slower than the others")
    num_sends = sum(other.num_answered + other.num_failed for other in others)
    usual_share = sum(other.num_failed for other in others) / max(1, num_sends)
    share = endpoint.num_failed / max(1, endpoint.num_answered + endpoint.num_failed)
    if endpoint.num_failed >= MIN_FAILURES and share > 0 and share >= MUCH_WORSE * usual_share:
        notes.append(f"fails {share:.0%} of its requests, the others {usual_share:.1%}")
    if endpoint.is_down:
        notes.append(f"{endpoint.state}: {endpoint.reason}")
    return "; ".join(notes)


def _seconds(value_s: float | None) -> str:
    return "" if value_s is None else f"{value_s:,.2f} s"
